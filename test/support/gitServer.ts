/** Git repositories, and a server of them: `git http-backend` (git-http-backend(1)) behind node:http. */
import { execFileSync, spawn } from "node:child_process"
import * as fs from "node:fs"
import * as http from "node:http"
import type { AddressInfo } from "node:net"
import * as Effect from "effect/Effect"

export const whyNoGit: string | false = ((): string | false => {
  try {
    execFileSync("git", ["http-backend"], {
      env: { PATH: process.env.PATH ?? "", REQUEST_METHOD: "GET" },
      stdio: "pipe"
    })
    return false
  } catch (error) {
    return (error as { status?: unknown }).status === 1 ? false : "git with git-http-backend is missing"
  }
})()

/** Variables of a git that no configuration of the machine changes. */
const env = {
  ...process.env,
  GIT_CONFIG_GLOBAL: "/dev/null",
  GIT_CONFIG_NOSYSTEM: "1",
  GIT_AUTHOR_NAME: "a",
  GIT_AUTHOR_EMAIL: "a@example.test",
  GIT_COMMITTER_NAME: "a",
  GIT_COMMITTER_EMAIL: "a@example.test"
}

export const git = (folder: string, ...args: ReadonlyArray<string>): string =>
  execFileSync("git", [...args], {
    cwd: folder,
    env,
    encoding: "utf8",
    stdio: ["ignore", "pipe", "pipe"]
  }).trim()

/** Makes a repository of these files, if it is missing, and commits them; gives the commit. */
export const commit = (folder: string, files: Readonly<Record<string, string>>): string => {
  if (!fs.existsSync(`${folder}/.git`)) {
    fs.mkdirSync(folder, { recursive: true })
    git(folder, "init", "--quiet", "--initial-branch=main")
  }
  for (const [name, text] of Object.entries(files)) {
    fs.mkdirSync(`${folder}/${name}`.replace(/[^/]*$/, ""), { recursive: true })
    fs.writeFileSync(`${folder}/${name}`, text)
  }
  git(folder, "add", "--all")
  git(folder, "commit", "--quiet", "--message=changed")
  return git(folder, "rev-parse", "HEAD")
}

export interface GitServer {
  readonly url: string
  /** The paths that it was asked for, with the header of the credentials. */
  readonly asked: Array<{ readonly url: string; readonly authorization: string | undefined }>
}

/** Serves the repositories below a folder at `/NAME/.git` as `/NAME.git`. `answer` may answer in its place. */
export const gitServer = (
  folder: string,
  answer: (request: http.IncomingMessage, response: http.ServerResponse) => boolean = () => false
) =>
  Effect.map(
    Effect.acquireRelease(
      Effect.promise(
        () =>
          new Promise<{ readonly server: http.Server; readonly asked: GitServer["asked"] }>((resolve) => {
            const asked: GitServer["asked"] = []
            const server = http.createServer((request, response) => {
              const { headers, method, url = "" } = request
              asked.push({ url, authorization: headers.authorization })
              response.setHeader("connection", "close")
              if (answer(request, response)) return
              const { pathname, search } = new URL(url, "http://x")
              const backend = spawn("git", ["http-backend"], {
                env: {
                  ...env,
                  GIT_PROJECT_ROOT: folder,
                  GIT_HTTP_EXPORT_ALL: "1",
                  PATH_INFO: pathname.replace(/^\/([^/]+)\.git\//, "/$1/.git/"),
                  QUERY_STRING: search.slice(1),
                  REQUEST_METHOD: method,
                  CONTENT_TYPE: headers["content-type"] ?? "",
                  HTTP_CONTENT_ENCODING: headers["content-encoding"] ?? "",
                  GIT_PROTOCOL: String(headers["git-protocol"] ?? "")
                },
                stdio: ["pipe", "pipe", "ignore"]
              })
              request.pipe(backend.stdin)
              backend.stdin.on("error", () => {})
              const parts: Array<Buffer> = []
              backend.stdout.on("data", (part: Buffer) => parts.push(part))
              backend.on("close", () => {
                const all = Buffer.concat(parts)
                const end = all.indexOf("\r\n\r\n")
                for (const line of all.subarray(0, end).toString("latin1").split("\r\n")) {
                  const [name = "", value = ""] = line.split(/: (.*)/s)
                  if (name === "Status") response.statusCode = Number.parseInt(value, 10)
                  else if (name !== "") response.setHeader(name, value)
                }
                response.end(all.subarray(end + 4))
              })
            })
            server.listen(0, "127.0.0.1", () => resolve({ server, asked }))
          })
      ),
      ({ server }) =>
        Effect.promise(
          () =>
            new Promise((resolve) => {
              server.close(resolve)
              server.closeAllConnections()
            })
        )
    ),
    ({ asked, server }): GitServer => ({
      asked,
      url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`
    })
  )
