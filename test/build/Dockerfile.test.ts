// biome-ignore-all lint/suspicious/noTemplateCurlyInString: these are variables of Dockerfiles
import assert from "node:assert/strict"
import * as fs from "node:fs"
import * as Effect from "effect/Effect"
import { Berth, Build, Container, Image, Volume } from "../../lib/index.ts"
import { importBusybox } from "../support/busybox.ts"
import { failure, suite } from "../support/effect.ts"
import { whyNoBusybox } from "../support/rootfs.ts"

const skip = { skip: whyNoBusybox }

/** A folder with a Dockerfile and these files; the image `local/busybox` is in the store. */
const project = (name: string, dockerfile: string, files: Readonly<Record<string, string>> = {}) =>
  Effect.gen(function* () {
    const { folder } = yield* Berth.Berth
    yield* importBusybox
    const context = `${folder}/project-${name}`
    for (const [file, text] of Object.entries({ Dockerfile: dockerfile, ...files })) {
      fs.mkdirSync(`${context}/${file}`.replace(/[^/]*$/, ""), { recursive: true })
      fs.writeFileSync(`${context}/${file}`, text)
    }
    return context
  })

suite("Dockerfile", (effect) => {
  effect(
    "stages, arguments, variables and copies are those of the Dockerfile",
    function* () {
      const context = yield* project(
        "whole",
        `# syntax=docker/dockerfile:1
ARG BASE=local/busybox
FROM \${BASE} AS build
ARG VERSION=0
ENV NAME=app TWO="a b"
WORKDIR /src
COPY src/ .
RUN echo "$NAME $VERSION $TWO" > version && cat main.txt >> version
FROM scratch AS unneeded
COPY absent /
FROM local/busybox
LABEL team=x description="two words"
COPY --from=build --chown=app:staff --chmod=0640 /src/version /app/version
COPY <<EOF <<'RAW' /etc/app/
name=\${NAME:-none}
EOF
name=$NAME
RAW
RUN <<SCRIPT
set -e
echo script > /script
SCRIPT
EXPOSE 80 90-91/udp
VOLUME ["/data"]
USER app
STOPSIGNAL SIGINT
HEALTHCHECK --interval=1m30s --retries=2 CMD true
ENTRYPOINT ["cat"]
CMD ["/app/version"]
`,
        { "src/main.txt": "main\n", "src/skip.log": "log", ".dockerignore": "# comment\n**/*.log\n" }
      )
      const image = yield* Build.dockerfile({ context, args: { VERSION: "7" }, tag: "local/whole:1" })
      assert.equal((yield* Container.run(image)).stdout, "app 7 a b\nmain\n")
      const { stdout } = yield* Container.run(image, {
        entrypoint: ["sh", "-c"],
        command: ["stat -c '%a %U:%G' /app/version; cat /etc/app/EOF /etc/app/RAW /script; ls /src 2>&1"]
      })
      assert.match(stdout, /^640 app:staff\nname=none\nname=\$NAME\nscript\nls: /)
      const { config } = image
      assert.deepEqual(config.labels, { team: "x", description: "two words" })
      assert.deepEqual(config.exposedPorts, ["80/tcp", "90/udp", "91/udp"])
      assert.deepEqual(config.volumes, ["/data"])
      assert.equal(config.user, "app")
      assert.equal(config.stopSignal, "SIGINT")
      assert.deepEqual(config.healthcheck?.test, ["CMD-SHELL", "true"])
      assert.equal(config.healthcheck?.retries, 2)
    },
    skip
  )

  effect(
    "an equal build runs nothing, and a new value of an argument runs what comes after it",
    function* () {
      const context = yield* project(
        "again",
        "FROM local/busybox\nRUN echo 1 > /a\nARG V\nRUN echo $V > /b\n"
      )
      const ran = (args: Readonly<Record<string, string>>) => {
        const events: Array<string> = []
        const onEvent = ({ _tag, place }: Build.BuildEvent) => {
          if (_tag === "Done") events.push(place!.replace(/.*:/, ""))
        }
        return Effect.as(Build.dockerfile({ context, args, onEvent }), events)
      }
      assert.deepEqual(yield* ran({ V: "1" }), ["2", "4"])
      assert.deepEqual(yield* ran({ V: "1" }), [])
      assert.deepEqual(yield* ran({ V: "2" }), ["4"])
    },
    skip
  )

  effect(
    "SHELL and ONBUILD are in the image, and the triggers run in the build that begins with it",
    function* () {
      const base = yield* project(
        "triggers",
        'FROM local/busybox\nSHELL ["/bin/sh", "-ec"]\nONBUILD COPY file /copied\nONBUILD RUN cat /copied > /ran\n'
      )
      yield* Build.dockerfile({ context: base, tag: "local/triggers" })
      const context = yield* project("triggered", "FROM local/triggers\nRUN false; true\n", { file: "words" })
      const error = yield* failure("BuildFailed", Build.dockerfile({ context }))
      assert.equal(error.exitCode, 1, "the shell of the base has -e")
      fs.writeFileSync(`${context}/Dockerfile`, "FROM local/triggers\nCMD cat /ran\n")
      const image = yield* Build.dockerfile({ context, tag: "local/triggered" })
      assert.deepEqual(image.config.command, ["/bin/sh", "-ec", "cat /ran"])
      assert.equal((yield* Container.run(image)).stdout, "words")
      const again = yield* project("triggered-twice", "FROM local/triggered\nRUN cat /ran\n")
      yield* Build.dockerfile({ context: again })
    },
    skip
  )

  effect(
    "steps with a locked cache wait for each other",
    function* () {
      const alone = "mkdir /cache/busy && sleep 0.3 && rmdir /cache/busy && echo >> /cache/done"
      const step = `RUN --mount=type=cache,target=/cache,id=locked-test,sharing=locked ${alone}`
      const stages = ["a", "b", "c"].map((name) => `FROM local/busybox AS ${name}\n${step} && touch /${name}`)
      const copies = ["a", "b", "c"].map((name) => `COPY --from=${name} /${name} /${name}`)
      const count = "RUN --mount=type=cache,target=/cache,id=locked-test wc -l < /cache/done > /count"
      const context = yield* project(
        "locked",
        [...stages, "FROM local/busybox", ...copies, count, ""].join("\n")
      )
      const image = yield* Build.dockerfile({ context, concurrency: 3 })
      assert.equal((yield* Container.run(image, { command: ["cat", "/count"] })).stdout, "3\n")
      yield* Volume.remove("build-cache.locked-test")
      const { folder } = yield* Berth.Berth
      assert.deepEqual(
        fs.readdirSync(`${folder}/layers/kept`).filter((name) => name.endsWith(".lock")),
        []
      )
      const base = Build.from(yield* Image.get("local/busybox"))
      const cache = { "/cache": { name: "locked-test", sharing: "all" as "locked" } }
      const { message } = yield* failure("InvalidOption", Build.image(Build.run(base, "true", { cache })))
      assert.match(message, /cache\.sharing: "all".*"private" or "locked"/)
    },
    skip
  )

  effect(
    "secrets, caches and tmpfs are there during their RUN alone",
    function* () {
      const context = yield* project(
        "mounts",
        `FROM local/busybox
RUN --mount=type=secret,id=token --mount=type=cache,target=/cache,id=dockerfile-test \\
    --mount=type=tmpfs,target=/scratch --mount=type=secret,id=other,target=/other.txt \\
    wc -c < /run/secrets/token > /length && cat /other.txt | wc -l >> /length && touch /cache/x /scratch/y
RUN ls /cache /scratch /run/secrets /other.txt 2>/dev/null > /left || true
`
      )
      const secrets = { token: "12345", other: "a\nb\n" }
      const image = yield* Build.dockerfile({ context, secrets })
      assert.equal(
        (yield* Container.run(image, { command: ["cat", "/length", "/left"] })).stdout
          .replaceAll("/cache:\n\n", "")
          .replaceAll("/scratch:\n", ""),
        "5\n2\n"
      )
      // Wherever the command finds it, another value is no other step.
      yield* Build.dockerfile({
        context,
        secrets: { token: "54321", other: "c\nd\n" },
        onEvent: ({ _tag, text }) => assert.equal(_tag, "Cached", text)
      })
      yield* Volume.remove("build-cache.dockerfile-test")
      const required = yield* project(
        "required",
        "FROM local/busybox\nRUN --mount=type=secret,id=none,required=true true\n"
      )
      assert.match(
        (yield* failure("BuildFailed", Build.dockerfile({ context: required }))).message,
        /:2: .*secret none/
      )
    },
    skip
  )

  effect(
    "named contexts are folders and builds, and a stage can be the target",
    function* () {
      const context = yield* project(
        "contexts",
        "FROM base AS one\nCOPY --from=files /note /note\nFROM one AS two\nRUN exit 1\n"
      )
      const files = yield* project("files", "", { note: "noted" })
      const base = Build.from("local/busybox").pipe(Build.config({ command: ["cat", "/note"] }))
      const image = yield* Build.dockerfile({ context, target: "one", contexts: { base, files } })
      assert.equal((yield* Container.run(image)).stdout, "noted")
      const error = yield* failure(
        "InvalidOption",
        Build.dockerfile({ context, target: "on", contexts: { base, files } })
      )
      assert.match(error.message, /one/)
    },
    skip
  )

  effect(
    "a stage on a build has its variables, shell and triggers, without a step that runs for them; images are contexts too",
    function* () {
      const context = yield* project("inherit", "FROM base\nENV A=$A:two\nRUN echo $A:$0 > /said\n")
      const files = yield* project("inherited", "", { note: "noted" })
      const base = yield* Build.fromDockerfile({
        context: files,
        text: 'FROM local/busybox\nENV A=one\nSHELL ["/bin/sh", "-ec"]\nONBUILD COPY --from=files note /note\nRUN true > /ran\n'
      })
      const events: Array<string> = []
      const contexts = { base, files, image: "docker-image://local/busybox" }
      const build = yield* Build.fromDockerfile({ context, contexts })
      assert.deepEqual(
        (yield* Build.explain(build)).map(({ isMade }) => isMade),
        [false, false, false]
      )
      const made = yield* Build.image(build, { onEvent: ({ _tag, text }) => events.push(`${_tag} ${text}`) })
      assert.equal(made.config.environment.A, "one:two")
      const { stdout } = yield* Container.run(made, { command: ["cat", "/said", "/note"] })
      assert.equal(stdout, "one:two:/bin/sh\nnoted")
      const text =
        "FROM image\nRUN --mount=from=image,source=/etc,target=/seen cmp /seen/passwd /etc/passwd\n"
      yield* Build.dockerfile({ context, contexts, text })
    },
    skip
  )

  effect(
    "named contexts are images of OCI layouts too, and FROM --platform chooses the platform of an image alone",
    function* () {
      const context = yield* project("platforms", "")
      const layout = `${context}/layout`
      yield* Image.save("local/busybox", layout, { format: "oci-layout" })
      const { digest, config } = yield* Image.fromLayout(layout)
      const contexts = {
        whole: `oci-layout://${layout}`,
        digest: `oci-layout://${layout}@${digest}`,
        tag: `oci-layout://${layout}:absent`,
        store: "docker-image://local/busybox",
        base: Build.from("local/busybox"),
        files: context
      }
      const platform = `${config.os}/${config.architecture}`
      const other = config.architecture === "arm64" ? "linux/amd64" : "linux/arm64"
      const from = (words: string) =>
        Build.dockerfile({ context, contexts, text: `FROM ${words}\nRUN test -f /etc/passwd\n` })
      for (const name of ["whole", "digest", "store"]) yield* from(`--platform=${platform} ${name}`)
      assert.match((yield* failure("ImageError", from("tag"))).message, /there is no tag absent/)
      for (const name of ["whole", "store"])
        assert.match(
          (yield* failure("BuildFailed", from(`--platform=${other} ${name}`))).message,
          RegExp(other)
        )
      for (const name of ["base", "files"])
        assert.match(
          (yield* failure("BuildFailed", from(`--platform=${platform} ${name}`))).message,
          /:1: .*--platform=.*is no image/
        )
    },
    skip
  )

  for (const [what, text, reason, mention] of [
    [
      "a variable in the source of a mount",
      "FROM scratch AS a\nFROM scratch\nARG S=a\nRUN --mount=from=$S,target=/x y",
      "Syntax",
      ":4: .*variables"
    ],
    [
      "a variable in the source of a copy",
      "FROM scratch AS a\nARG S=a\nCOPY --from=$S x y",
      "Syntax",
      ":3: .*variables"
    ],
    [
      "a copy from a later stage",
      "FROM scratch AS a\nCOPY --from=b x y\nFROM a AS b",
      "Syntax",
      ":2: .*stage b"
    ],
    ["an unknown instruction", "FROM scratch\nFRUN x", "Syntax", ":2: .*FRUN"],
    ["no FROM", "ARG A", "Syntax", "FROM"],
    ["an instruction before FROM", "RUN x\nFROM scratch", "Syntax", ":1: .*RUN"],
    ["a quote without an end", "FROM scratch\nENV A='x", "Syntax", ":2: .*quote"],
    ["a required argument", "FROM scratch\nARG A\nWORKDIR ${A:?needed}", "Syntax", ":3: .*needed"],
    ["a stage that is not there", "FROM scratch AS a\nCOPY --from=1 a b", "Syntax", ":2: .*stage 1"],
    ["a copy from the stage itself", "FROM scratch AS a\nCOPY --from=a x y", "Syntax", ":2: .*stage a"],
    ["an unknown flag", "FROM scratch\nCOPY --owner=1 a b", "Unsupported", ":2: .*--owner"],
    [
      "a flag that Berth does not have",
      "FROM scratch\nRUN --security=insecure x",
      "Unsupported",
      ":2: .*insecure"
    ],
    ["an unknown mount", "FROM scratch\nRUN --mount=type=image x", "Unsupported", ":2: .*image"],
    ["an address in COPY", "FROM scratch\nCOPY https://example.test/x /", "Syntax", ":2: .*ADD"],
    ["a repository in COPY", "FROM scratch\nCOPY https://example.test/x.git#v1 /", "Syntax", ":2: .*ADD"],
    [
      "a repository with a password",
      "FROM scratch\nADD https://a:b@example.test/x.git /",
      "Syntax",
      ":2: .*password"
    ],
    [
      "a checksum of a repository that is no commit",
      "FROM scratch\nADD --checksum=v1 https://example.test/x.git /",
      "Syntax",
      ":2: .*whole commit"
    ],
    [
      "a repository by git://",
      "FROM scratch\nADD git://example.test/x/y /",
      "Unsupported",
      ":2: .*git:// is neither"
    ],
    ["a kept .git of a file", "FROM scratch\nADD --keep-git-dir=true x /", "Syntax", ":2: .*git repository"],
    ["a checksum of a file", "FROM scratch\nADD --checksum=sha256:00 x /", "Syntax", ":2: .*HTTP address"],
    [
      "a checksum of another kind",
      "FROM scratch\nADD --checksum=md5:00 http://x.test/y /",
      "Syntax",
      ":2: .*md5"
    ],
    ["an address without a name", "FROM scratch\nADD http://x.test/ /to/", "Syntax", ":2: .*name"],
    ["an invalid mode", "FROM scratch\nCOPY --chmod=u~x a b", "Syntax", ":2: .*u~x"],
    ["a mode beyond 7777", "FROM scratch\nCOPY --chmod=17777 a b", "Syntax", ":2: .*17777"],
    [
      "a flag that is neither true nor false",
      "FROM scratch\nCOPY --parents=some a b",
      "Syntax",
      ":2: .*some"
    ],
    ["an invalid port", "FROM scratch\nEXPOSE x", "Syntax", ":2: .*EXPOSE x"],
    [
      "a check besides NONE",
      "FROM scratch\nHEALTHCHECK NONE CMD x",
      "Syntax",
      ":2: .*NONE takes nothing else"
    ],
    [
      "a time of no health check",
      "FROM scratch\nHEALTHCHECK --timeout=1s NONE",
      "Syntax",
      ":2: .*NONE takes nothing else"
    ],
    ["an ONBUILD of an ONBUILD", "FROM scratch\nONBUILD ONBUILD RUN x", "Syntax", ":2: .*ONBUILD"]
  ] as const)
    effect(
      `a Dockerfile with ${what} is an error with its line`,
      function* () {
        const context = yield* project(`bad-${what.replaceAll(/\W/g, "-")}`, text)
        const error = yield* failure("BuildFailed", Build.dockerfile({ context }))
        assert.equal(error.reason, reason, error.message)
        assert.match(error.message, new RegExp(mention))
      },
      skip
    )
})
