import assert from "node:assert/strict"
import * as fs from "node:fs"
import * as path from "node:path"
import * as process from "node:process"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import * as Image from "../../lib/Image.ts"
import { runHelper } from "../../lib/internal/registry/credentials.ts"
import * as Registry from "../../lib/Registry.ts"
import { failure, suite } from "../support/effect.ts"
import { makeImage, sh, types } from "../support/images.ts"
import { htpasswd, whyNoRegistry } from "../support/registry.ts"
import { push } from "../support/registryClient.ts"
import { environment, front, nobody, runningRegistry, temporaryFolder } from "../support/scoped.ts"

const basic = (user: string, password: string): string =>
  `Basic ${Buffer.from(`${user}:${password}`).toString("base64")}`

const entry = (user: string, password: string) => ({
  auth: Buffer.from(`${user}:${password}`).toString("base64")
})

const writeJson = (file: string, content: unknown): void => {
  fs.mkdirSync(path.dirname(file), { recursive: true })
  fs.writeFileSync(file, JSON.stringify(content))
}

const manifest = "{}"
const head = { "content-length": String(manifest.length), "content-type": types.manifest }
const digest = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"

/** A registry that accepts and records every user, and answers 401 to requests without one. */
const asking = front(undefined, (request, response) => {
  if (request.headers.authorization === undefined) {
    response.writeHead(401, { "www-authenticate": 'Basic realm="test"' }).end()
  } else {
    response.writeHead(200, { ...head, "docker-content-digest": digest }).end(manifest)
  }
})

const resolve = (host: string, repository = "team/app", options?: Registry.ConnectOptions) =>
  Effect.flatMap(Registry.connect(host, options), (registry) => Registry.resolve(registry, repository, "1"))

/** Puts a credential helper into PATH: a shell script that finds the server in `$server`. */
const helper = (name: string, script: string) =>
  Effect.gen(function* () {
    const folder = yield* temporaryFolder
    const file = `${folder}/docker-credential-${name}`
    fs.writeFileSync(file, `#!/bin/sh\n[ "$1" = get ] || exit 2\nserver=$(cat)\n${script}\n`, { mode: 0o755 })
    yield* environment({ PATH: `${folder}:${process.env.PATH}` })
    return folder
  })

suite("registry credentials", (effect, folder) => {
  const skip = { skip: whyNoRegistry }

  effect(
    "credentials of skopeo, podman and docker are found, in their order",
    function* () {
      const home = yield* nobody
      const registry = yield* runningRegistry({ htpasswd })
      const files = {
        runtime: `${home}/runtime/containers/auth.json`,
        config: `${home}/config/containers/auth.json`,
        docker: `${home}/docker/config.json`
      }
      const unauthorized = Effect.map(failure("RegistryError", resolve(registry.host)), (error) => {
        assert.equal(error.reason, "Unauthorized", error.message)
        return error.message
      })
      assert.match(yield* unauthorized, /docker login/)
      for (const file of Object.values(files)) {
        fs.mkdirSync(path.dirname(file), { recursive: true })
        const login = ["login", "--tls-verify=false", "--authfile", file, "-u", "jane", "-p", "secret"]
        sh("skopeo", ...login, registry.host)
        const error = yield* failure("RegistryError", resolve(registry.host))
        // The registry accepts jane, and has no image.
        assert.equal(error.reason, "NotFound", error.message)
        fs.rmSync(file)
      }
      writeJson(files.docker, { auths: { [registry.host]: entry("jane", "secret") } })
      writeJson(files.config, { auths: { "another.example": entry("joe", "secret") } })
      assert.equal((yield* failure("RegistryError", resolve(registry.host))).reason, "NotFound")
      writeJson(files.runtime, { auths: { [registry.host]: entry("jim", "secret") } })
      assert.match(yield* unauthorized, /jim/)
      yield* environment({ REGISTRY_AUTH_FILE: `${home}/nothing.json` })
      assert.match(yield* unauthorized, /docker login/)
      yield* environment({ REGISTRY_AUTH_FILE: files.docker })
      assert.equal((yield* failure("RegistryError", resolve(registry.host))).reason, "NotFound")
      const given = { credentials: { username: "jack", password: "secret" } }
      assert.match((yield* failure("RegistryError", resolve(registry.host, "a", given))).message, /jack/)
    },
    skip
  )

  effect(
    "credentials for a repository come before those for its namespace, and these before the host's",
    function* () {
      const home = yield* nobody
      const registry = yield* asking
      const auths = {
        [registry.host]: entry("host", "1"),
        [`${registry.host}/team`]: entry("team", "2"),
        [`${registry.host}/team/app`]: entry("app", "3"),
        [`${registry.host}/team/app/deeper`]: entry("deeper", "4"),
        [`${registry.host}/tea`]: entry("tea", "5")
      }
      writeJson(`${home}/runtime/containers/auth.json`, { auths })
      const connected = yield* Registry.connect(registry.host)
      const used = (repository: string) =>
        Effect.map(Registry.resolve(connected, repository, "1"), () => registry.authorizations.at(-1))
      assert.equal(yield* used("team/app"), basic("app", "3"))
      assert.equal(yield* used("team/other"), basic("team", "2"))
      assert.equal(yield* used("teams"), basic("host", "1"))
      assert.equal(yield* used("team/app/other"), basic("app", "3"))
      assert.equal(yield* used("team/app/deeper"), basic("deeper", "4"))
      assert.equal(yield* used("team/app"), basic("app", "3"))
    }
  )

  effect(
    "a key of an auth file may be a URL, as old versions of Docker write it, and a path is not a host",
    function* () {
      const home = yield* nobody
      const registry = yield* asking
      const write = (key: string) =>
        writeJson(`${home}/docker/config.json`, { auths: { [key]: entry("jane", "secret") } })
      for (const key of [`https://${registry.host}/v1/`, `http://${registry.host}`]) {
        write(key)
        yield* resolve(registry.host)
        assert.equal(registry.authorizations.at(-1), basic("jane", "secret"))
      }
      for (const key of [`${registry.host}/other`, `https://${registry.host}.example`, "__proto__"]) {
        write(key)
        assert.equal((yield* failure("RegistryError", resolve(registry.host))).reason, "Unauthorized")
      }
    }
  )

  effect("a registry's own credential helper is asked first, else the one for all registries", function* () {
    const home = yield* nobody
    const registry = yield* asking
    const folder = yield* helper(
      "one",
      'echo "$server" >>"$(dirname "$0")/asked"; echo \'{"ServerURL":"x","Username":"one","Secret":"1"}\''
    )
    yield* helper("all", `printf '{"Username":"all","Secret":"2"}'`)
    const config = `${home}/docker/config.json`
    writeJson(config, { credHelpers: { [registry.host]: "one" }, credsStore: "all" })
    const connected = yield* Registry.connect(registry.host)
    yield* Registry.resolve(connected, "team/app", "1")
    yield* Registry.resolve(connected, "team/app", "2")
    assert.equal(registry.authorizations.at(-1), basic("one", "1"))
    assert.equal(fs.readFileSync(`${folder}/asked`, "utf8"), `${registry.host}\n`)
    writeJson(config, {
      auths: { [registry.host]: {} },
      credHelpers: { "another.example": "one" },
      credsStore: "all"
    })
    yield* resolve(registry.host)
    assert.equal(registry.authorizations.at(-1), basic("all", "2"))
  })

  effect("credentials are looked for elsewhere when a helper has none", function* () {
    const home = yield* nobody
    const registry = yield* asking
    yield* helper("none", "echo credentials not found in native keychain; exit 1")
    const none = { credsStore: "none" }
    writeJson(`${home}/runtime/containers/auth.json`, none)
    const error = yield* failure("RegistryError", resolve(registry.host))
    assert.match(error.message, /docker login/)
    writeJson(`${home}/docker/config.json`, {
      ...none,
      auths: { [registry.host]: entry("jane", "secret") }
    })
    yield* resolve(registry.host)
    assert.equal(registry.authorizations.at(-1), basic("jane", "secret"))
  })

  effect(
    "a helper that fails is named with the file that configures it, and none of its secrets is shown",
    function* () {
      const home = yield* nobody
      const registry = yield* asking
      const config = `${home}/docker/config.json`
      const cases = [
        ["locked", "echo the keyring is locked; exit 3", /exit code 3: the keyring is locked/],
        ["words", "echo hunter2", /Username and a Secret/],
        ["half", `echo '{"Username":"hunter2"}'`, /Username and a Secret/],
        ["endless", "exec yes hunter2", /more than 262144 bytes/],
        ["killed", "kill -9 $$", /fails/]
      ] as const
      for (const [name, script, why] of cases) {
        yield* helper(name, script)
        writeJson(config, { credHelpers: { [registry.host]: name } })
        const error = yield* failure("RegistryError", resolve(registry.host))
        assert.equal(error.reason, "Unauthorized")
        assert.match(error.message, why)
        assert.ok(error.message.includes(`docker-credential-${name}`), error.message)
        assert.ok(error.message.includes(config), error.message)
        assert.ok(!error.message.includes("hunter2"), error.message)
      }
      for (const [name, why] of [
        ["absent", /not in PATH/],
        ["../../bin/sh", /not the name/],
        ["-x", /not the name/],
        ["a b", /not the name/]
      ] as const) {
        writeJson(config, { credHelpers: { [registry.host]: name } })
        assert.match((yield* failure("RegistryError", resolve(registry.host))).message, why)
      }
    }
  )

  effect("a helper that never answers is killed, and its children are not waited for", function* () {
    const at = yield* helper("slow", 'sleep 60 & echo $! >"$(dirname "$0")/pid"; exec sleep 60')
    const began = Date.now()
    const why = yield* Effect.flip(runHelper("docker-credential-slow", "x", Duration.seconds(1)))
    assert.match(why, /no answer within 1s/)
    assert.ok(Date.now() - began < 30_000)
    process.kill(Number(fs.readFileSync(`${at}/pid`, "utf8")))
  })

  effect("an identity token, from a helper or a file, is sent only to the token service", function* () {
    const home = yield* nobody
    const bodies: Array<string> = []
    const tokens = yield* front(undefined, (request, response) => {
      let body = ""
      request.on("data", (chunk) => {
        body += String(chunk)
      })
      request.on("end", () => {
        bodies.push(`${request.method} ${body}`)
        response.end(JSON.stringify({ access_token: "good" }))
      })
    })
    const registry = yield* front(undefined, (request, response) => {
      if (request.headers.authorization === "Bearer good") {
        response.writeHead(200, { ...head, "docker-content-digest": digest }).end()
      } else {
        const challenge = `Bearer realm="http://${tokens.host}/token",service="my service"`
        response.writeHead(401, { "www-authenticate": challenge }).end()
      }
    })
    yield* helper("token", `echo '{"Username":"<token>","Secret":"refresh me"}'`)
    const config = `${home}/docker/config.json`
    for (const content of [
      { credsStore: "token" },
      { auths: { [registry.host]: { auth: entry("ignored", "").auth, identitytoken: "refresh me" } } }
    ]) {
      writeJson(config, content)
      yield* resolve(registry.host)
      const [method, fields] = bodies.at(-1)!.split(" ")
      assert.equal(method, "POST")
      assert.deepEqual(Object.fromEntries(new URLSearchParams(fields)), {
        service: "my service",
        scope: "repository:team/app:pull",
        grant_type: "refresh_token",
        client_id: "berth",
        refresh_token: "refresh me"
      })
    }
    assert.ok(
      [...registry.authorizations, ...tokens.authorizations].every((text) => !text.includes("refresh"))
    )
  })

  effect(
    "a pull whose token expires midway gets another token and continues",
    function* () {
      yield* nobody
      const layout = `${folder()}-layout`
      yield* Effect.addFinalizer(() => Effect.sync(() => fs.rmSync(layout, { recursive: true })))
      makeImage(layout, "one")
      const registry = yield* runningRegistry()
      push(`oci:${layout}:one`, `${registry.host}/team/app:1`)
      let issued = 0
      const uses = new Map<string, number>()
      const tokens = yield* front(undefined, (_request, response) => {
        response.end(JSON.stringify({ token: `t${++issued}` }))
      })
      const guard = yield* front(registry.host, (request, response, pass) => {
        const token = request.headers.authorization ?? ""
        const used = uses.get(token) ?? 0
        uses.set(token, used + 1)
        // The token expires after two requests.
        if (token === "" || used >= 2 || token !== `Bearer t${issued}`) {
          const challenge = `Bearer realm="http://${tokens.host}/token",service="s",error="invalid_token"`
          response.writeHead(401, { "www-authenticate": challenge }).end()
        } else {
          delete request.headers.authorization
          pass()
        }
      })
      const image = yield* Image.pull(`${guard.host}/team/app:1`)
      assert.equal(fs.readFileSync(`${image.layers[1]}/etc/motd`, "utf8"), "this is one\n")
      assert.ok(issued >= 2, `${issued} tokens`)
    },
    skip
  )

  effect("a helper is asked once more when the registry refuses its password", function* () {
    const home = yield* nobody
    let accepted = basic("jane", "1")
    const registry = yield* front(undefined, (request, response) => {
      if (request.headers.authorization === accepted) {
        response.writeHead(200, { ...head, "docker-content-digest": digest }).end(manifest)
      } else {
        response.writeHead(401, { "www-authenticate": 'Basic realm="test"' }).end()
      }
    })
    const config = `${home}/docker/config.json`
    writeJson(config, { auths: { [registry.host]: entry("jane", "1") } })
    const connected = yield* Registry.connect(registry.host)
    yield* Registry.resolve(connected, "team/app", "1")
    writeJson(config, { auths: { [registry.host]: entry("jane", "2") } })
    accepted = basic("jane", "2")
    yield* Registry.resolve(connected, "team/app", "1")
    accepted = "nobody"
    const error = yield* failure("RegistryError", Registry.resolve(connected, "team/app", "1"))
    assert.equal(error.reason, "Unauthorized")
    assert.match(error.message, /refuses the user jane/)
  })

  effect("an invalid auth file is ignored, and the pull continues", function* () {
    const home = yield* nobody
    const registry = yield* asking
    fs.mkdirSync(`${home}/runtime/containers`, { recursive: true })
    fs.writeFileSync(`${home}/runtime/containers/auth.json`, "{ not JSON")
    fs.mkdirSync(`${home}/config/containers/auth.json`, { recursive: true })
    writeJson(`${home}/docker/config.json`, { auths: { [registry.host]: entry("jane", "secret") } })
    yield* resolve(registry.host)
    assert.equal(registry.authorizations.at(-1), basic("jane", "secret"))
    const connected = yield* Registry.connect(registry.host)
    yield* Stream.runDrain(
      Registry.blob(connected, "team/app", { mediaType: types.config, digest, size: manifest.length })
    )
  })
})
