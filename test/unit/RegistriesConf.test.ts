import assert from "node:assert/strict"
import * as fs from "node:fs"
import * as Effect from "effect/Effect"
import * as Image from "../../lib/Image.ts"
import * as Registry from "../../lib/Registry.ts"
import { makeAuthority } from "../support/certificates.ts"
import { failure, suite } from "../support/effect.ts"
import { makeImage } from "../support/images.ts"
import { whyNoRegistry } from "../support/registry.ts"
import { push } from "../support/registryClient.ts"
import { environment, nobody, runningRegistry, temporaryFolder } from "../support/scoped.ts"

suite("Registry.fromRegistriesConf", (effect) => {
  effect(
    "fromRegistriesConf reads mirrors and the location that replaces a prefix",
    function* () {
      const home = yield* nobody
      yield* environment({ CONTAINERS_REGISTRIES_CONF: undefined })
      const registry = yield* runningRegistry()
      makeImage(`${home}/layout`, "one")
      push(`oci:${home}/layout:one`, `${registry.host}/mirrored/app:1`)
      const folder = `${home}/config/containers`
      fs.mkdirSync(`${folder}/registries.conf.d`, { recursive: true })
      fs.writeFileSync(
        `${folder}/registries.conf`,
        `unqualified-search-registries = ["example.org"]
[[registry]]
prefix = "registry.invalid/team"
location = "gone.invalid"
[[registry.mirror]]
location = "${registry.host}/mirrored"
insecure = true
[[registry]]
location = "blocked.invalid"
blocked = true
`
      )
      const name = "registry.invalid/team/app:1"
      const options = yield* Registry.fromRegistriesConf(name)
      const mirror = { location: `${registry.host}/mirrored`, replaces: "team", plainHttp: true }
      assert.deepEqual(options, { location: "gone.invalid", replaces: "team", mirrors: [mirror] })
      const image = yield* Image.pull(name, options)
      assert.equal(fs.readFileSync(`${image.layers[1]}/etc/motd`, "utf8"), "this is one\n")
      assert.equal(image.reference, name)
      const blocked = yield* failure("InvalidOption", Registry.fromRegistriesConf("blocked.invalid/a"))
      assert.ok(blocked.message.includes(`${folder}/registries.conf`), blocked.message)
      assert.deepEqual(yield* Registry.fromRegistriesConf("other.invalid/a"), {})
      // A drop-in file overrides the table of a prefix.
      fs.writeFileSync(
        `${folder}/registries.conf.d/1.conf`,
        `[[registry]]\nprefix = "registry.invalid/team"\nlocation = "${registry.host}/mirrored"\ninsecure = true\n`
      )
      const moved = yield* Registry.fromRegistriesConf(name)
      assert.deepEqual(moved, { ...mirror, mirrors: [] })
      assert.equal((yield* Image.pull(name, moved)).digest, image.digest)
    },
    { skip: whyNoRegistry }
  )

  effect(
    "mirrors apply to tags or digests as configured, and a wildcard prefix covers subdomains",
    function* () {
      const file = `${yield* temporaryFolder}/registries.conf`
      fs.writeFileSync(
        file,
        `[[registry]]
prefix = "*.team.invalid"
location = "one.invalid/all"
[[registry]]
location = "some.invalid"
[[registry.mirror]]
location = "always.invalid"
[[registry.mirror]]
location = "digests.invalid"
pull-from-mirror = "digest-only"
[[registry.mirror]]
location = "tags.invalid"
pull-from-mirror = "tag-only"
[[registry]]
location = "digests-only.invalid"
mirror-by-digest-only = true
[[registry.mirror]]
location = "mirror.invalid"
`
      )
      const digest = `sha256:${"0".repeat(64)}`
      const mirrorsOf = (name: string) =>
        Effect.map(Registry.fromRegistriesConf(name, file), ({ mirrors }) =>
          mirrors?.map((mirror) => (typeof mirror === "string" ? mirror : mirror.location))
        )
      assert.deepEqual(yield* mirrorsOf("some.invalid/a:1"), ["always.invalid", "tags.invalid"])
      assert.deepEqual(yield* mirrorsOf(`some.invalid/a@${digest}`), ["always.invalid", "digests.invalid"])
      assert.deepEqual(yield* mirrorsOf("digests-only.invalid/a:1"), [])
      assert.deepEqual(yield* mirrorsOf(`digests-only.invalid/a@${digest}`), ["mirror.invalid"])
      const subdomain = yield* Registry.fromRegistriesConf("a.b.team.invalid/x", file)
      assert.deepEqual(subdomain, { location: "one.invalid/all", mirrors: [] })
      assert.deepEqual(yield* Registry.fromRegistriesConf("team.invalid/x", file), {})
    }
  )

  effect(
    "an insecure registry with TLS is used without verification of its certificate",
    function* () {
      const home = yield* nobody
      const registry = yield* runningRegistry({ tls: makeAuthority().issue("localhost") })
      makeImage(`${home}/layout`, "one")
      push(`oci:${home}/layout:one`, `${registry.host}/app:1`)
      const file = `${home}/registries.conf`
      fs.writeFileSync(file, `[[registry]]\nlocation = "${registry.host}"\ninsecure = true\n`)
      const name = `${registry.host}/app:1`
      yield* failure("RegistryError", Image.pull(name))
      const options = yield* Registry.fromRegistriesConf(name, file)
      assert.deepEqual(options, { location: registry.host, tlsVerify: false, mirrors: [] })
      assert.equal((yield* Image.pull(name, options)).reference, name)
    },
    { skip: whyNoRegistry }
  )

  effect("an invalid registries.conf fails with the file's name, the line and the mistake", function* () {
    const file = `${yield* temporaryFolder}/registries.conf`
    const good = '[[registry]]\nlocation = "a.invalid"\n'
    const cases: ReadonlyArray<readonly [content: string, line: number, why: RegExp]> = [
      [`${good}insecure = maybe\n`, 3, /Invalid TOML/],
      [`${good}insecure = "yes"\n`, 3, /registry\.insecure: .*boolean/],
      ['[[registry]]\nprefix = "a.invalid"\n', 1, /location is missing/],
      [`${good}[[registry.mirror]]\ninsecure = true\n`, 3, /registry\.mirror\.location/],
      [`${good}[[registry.mirror]]\nlocation = "https://b.invalid"\n`, 4, /without a scheme/],
      [`${good}${good}`, 3, /twice/],
      ['[[registry]]\nprefix = "a.invalid/b:1"\nlocation = "c.invalid"\n', 2, /a tag or a digest/],
      ['[registries.search]\nregistries = ["a.invalid"]\n', 1, /version 1/]
    ]
    for (const [content, line, why] of cases) {
      fs.writeFileSync(file, content)
      const error = yield* failure("InvalidData", Registry.fromRegistriesConf("a.invalid/x", file))
      const where = `${file}, line ${line} (`
      assert.ok(error.message.includes(where), `${error.message}: not line ${line}`)
      assert.match(error.message, why)
    }
    const absent = yield* failure("InvalidOption", Registry.fromRegistriesConf("a", `${file}.absent`))
    assert.match(absent.message, /an existing registries\.conf/)
  })
})
