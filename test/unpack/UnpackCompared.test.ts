/**
 * The hard cases of unpacking: each a small image, whose tree as containers of Berth see it is compared with what umoci
 * makes of the same layers. Where the two are meant to differ, the case says how and why.
 */
import assert from "node:assert/strict"
import * as fs from "node:fs"
import { gzipSync } from "node:zlib"
import { Image, type ImageLayer, RootFs } from "../../lib/index.ts"
import { failure, suite } from "../support/effect.ts"
import { scratch } from "../support/imageArchive.ts"
import { sh, sha256, types, whyNoImages, writeImage, writeIndex } from "../support/images.ts"
import {
  concat,
  entry,
  file,
  folder,
  hardlink,
  header,
  latin1,
  long,
  pax,
  symlink,
  tar
} from "../support/tar.ts"
import { type Node, treeOf } from "../support/trees.ts"

type Tree = Record<string, Node>

interface Case {
  readonly layers: ReadonlyArray<Uint8Array>
  /** Why Berth's tree differs from umoci's, and how the expected tree is made of umoci's. */
  readonly differs?: { readonly why: string; readonly expected: (umoci: Tree) => Tree }
  /** Why the tree is compared with GNU tar's instead of umoci's. */
  readonly by?: { readonly tar: string }
  /** The reason of Berth's error, if Berth refuses the image. */
  readonly refused?: string
  readonly limits?: ImageLayer.Limits
  /** Makes the gzip blob of a layer; without it, the first layer is compressed and the others are not. */
  readonly blob?: (tar: Uint8Array) => Uint8Array
}

const folderNode: Node = { kind: "folder", mode: "755", uid: 0, gid: 0, mtime: "0", xattrs: [] }

/** The tree without the time of its root, which is that of the container's writable layer. */
const rooted = (tree: Tree): Tree => ({ ...tree, ".": { ...tree["."], mtime: "" } })

const wh = (name: string) => file(name)
const root = (mtime = 1_000_000_001) => folder("./", { mtime })

const capability = Uint8Array.of(0, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
const name255 = "n".repeat(255)
const deep = Array.from({ length: 12 }, (_, i) => `${i}`.repeat(200).slice(0, 200)).join("/")

const cases: Readonly<Record<string, Case>> = {
  "a whiteout before and after a file of its name": {
    layers: [
      tar(root(), folder("d/"), file("d/a", "lower"), file("d/b", "lower"), file("d/c", "lower")),
      tar(
        root(),
        folder("d/"),
        file("d/a", "upper"),
        wh("d/.wh.a"),
        wh("d/.wh.b"),
        file("d/b", "upper"),
        wh("d/.wh.c")
      )
    ]
  },
  "an opaque folder with whiteouts inside it, before and after the files that it keeps": {
    layers: [
      tar(root(), folder("d/"), file("d/a", "a"), folder("d/e/"), file("d/e/f", "f")),
      tar(root(), folder("d/"), file("d/new", "new"), wh("d/.wh..wh..opq"), wh("d/.wh.a"), folder("d/e/"))
    ]
  },
  "whiteouts of a missing file, a symlink and a folder": {
    layers: [
      tar(
        root(),
        folder("t/"),
        file("t/kept", "kept"),
        symlink("s", "t"),
        folder("full/"),
        file("full/x", "x")
      ),
      tar(root(), wh(".wh.missing"), wh(".wh.s"), wh(".wh.full"))
    ]
  },
  "a path that is hidden and made again two layers further up": {
    layers: [
      tar(root(), folder("d/"), file("d/old", "old")),
      tar(root(), wh(".wh.d")),
      tar(root(), folder("d/", { mode: 0o700 }), file("d/new", "new"))
    ]
  },
  "a folder, a file and a symlink that replace each other across layers": {
    layers: [
      tar(
        root(),
        folder("a/"),
        file("a/x", "x"),
        file("b", "b"),
        symlink("c", "a"),
        folder("e/"),
        file("e/x", "x")
      ),
      tar(
        root(),
        file("a", "now a file"),
        folder("b/"),
        file("b/y", "y"),
        folder("c/"),
        file("c/z", "z"),
        symlink("e", "b")
      )
    ]
  },
  "repeated entries in one layer": {
    layers: [
      tar(
        root(),
        file("a", "first"),
        file("a", "second", { mode: 0o600, uid: 5 }),
        symlink("b", "a"),
        file("b", "b")
      )
    ]
  },
  "a hard link to a file of a lower layer": {
    layers: [
      tar(root(), folder("usr/"), file("usr/a", "content", { mode: 0o4755, uid: 7, gid: 8, mtime: 123_456 })),
      tar(root(), folder("opt/"), hardlink("opt/b", "usr/a"), hardlink("opt/c", "usr/a"))
    ]
  },
  "a chain of hard links down to a lower layer, with xattrs and capabilities": {
    layers: [
      tar(
        root(),
        pax([
          ["SCHILY.xattr.user.note", latin1("\x01\xff")],
          ["SCHILY.xattr.security.capability", capability],
          ["mtime", "1000.123456789"]
        ]),
        file("a", "content", { uid: 12, gid: 13 })
      ),
      tar(root(), hardlink("b", "a"), hardlink("c", "b"), hardlink("d", "c"))
    ]
  },
  "a hard link to a symlink of a lower layer": {
    layers: [tar(root(), symlink("s", "/etc/passwd")), tar(root(), hardlink("h", "s"))]
  },
  "a hard link through a symlinked folder of a lower layer, absolute or upwards": {
    layers: [
      tar(
        root(),
        folder("real/"),
        file("real/f", "f"),
        symlink("abs", "/real"),
        symlink("up", "../../../real")
      ),
      tar(root(), hardlink("one", "abs/f"), hardlink("two", "up/f"))
    ]
  },
  "a hard link to a file that a lower layer has and a layer between has changed": {
    layers: [
      tar(root(), file("a", "oldest"), file("b", "b")),
      tar(root(), file("a", "newer")),
      tar(root(), hardlink("c", "a"), hardlink("d", "b"))
    ]
  },
  "a hard link to a file that its own layer removes": {
    layers: [tar(root(), file("a", "moved")), tar(root(), hardlink("b", "a"), wh(".wh.a"))]
  },
  "a hard link to a hard link of the layer below": {
    layers: [
      tar(root(), file("a", "a")),
      tar(root(), folder("d/", { mode: 0o750 }), hardlink("d/b", "a")),
      tar(root(), folder("e/", { mode: 0o711 }), hardlink("e/c", "d/b"))
    ],
    differs: {
      why: "a layer links only the names that it lists; other names of the file keep the lower file",
      expected: (tree) => {
        const { linked: _, ...alone } = tree.a!
        const both = { linked: ["d/b", "e/c"] }
        return { ...tree, a: alone, "d/b": { ...tree["d/b"], ...both }, "e/c": { ...tree["e/c"], ...both } }
      }
    }
  },
  "a hard link to a fifo and a device of a lower layer": {
    layers: [
      tar(
        root(),
        entry({ name: "p", type: "6", mode: 0o600 }),
        entry({ name: "n", type: "3", major: 1, minor: 3, uid: 9 })
      ),
      tar(root(), hardlink("p2", "p"), hardlink("n2", "n"))
    ]
  },
  "a hard link to a sparse file of a lower layer": {
    layers: [
      tar(
        root(),
        pax([
          ["GNU.sparse.major", "1"],
          ["GNU.sparse.minor", "0"],
          ["GNU.sparse.name", "s"],
          ["GNU.sparse.realsize", "1000000"]
        ]),
        file("GNUSparseFile.0/s", concat("1\n500000\n4\n", new Uint8Array(501), "data"))
      ),
      tar(root(), hardlink("t", "s"))
    ]
  },
  "a hard link with an absolute target, with names that are not UTF-8, in folders without an entry": {
    layers: [
      tar(
        root(),
        folder("tmp/", { mode: 0o1777, uid: 3 }),
        folder(latin1("d\xe9/"), { mode: 0o700 }),
        file(latin1("d\xe9/\xff"), "f")
      ),
      tar(
        root(),
        hardlink(latin1("tmp/\xfe b"), latin1("/d\xe9/\xff")),
        hardlink("tmp/c", latin1("./d\xe9/\xff"))
      )
    ]
  },
  "a hard link that leads upwards": {
    layers: [tar(root(), file("a")), tar(root(), hardlink("b", "../../a"))],
    refused: "Escape"
  },
  "a hard link to itself, and two hard links to each other, without a file": {
    layers: [tar(root()), tar(root(), hardlink("a", "b"), hardlink("b", "a"))],
    refused: "Corrupt"
  },
  "a hard link to a file that no layer has": {
    layers: [tar(root(), file("a")), tar(root(), hardlink("b", "nowhere"))],
    refused: "Corrupt"
  },
  "a hard link out of the root through a symlink of a lower layer": {
    layers: [
      tar(root(), symlink("out", "/../../../../../../../../../etc"), folder("etc/")),
      tar(root(), hardlink("b", "out/passwd"))
    ],
    refused: "Corrupt"
  },
  "a hard link to a folder of a lower layer": {
    layers: [tar(root(), folder("d/")), tar(root(), hardlink("b", "d"))],
    refused: "Corrupt"
  },
  "a write and a whiteout through an absolute symlink of the same layer": {
    layers: [
      tar(root(), folder("real/"), file("real/gone", "gone"), symlink("via", "/real")),
      tar(root(), folder("real/"), symlink("via", "/real"), file("via/new", "new"), wh("via/.wh.gone"))
    ]
  },
  "a write through a symlink of a lower layer": {
    layers: [
      tar(root(), folder("usr/"), folder("usr/lib/"), file("usr/lib/a", "a"), symlink("lib", "usr/lib")),
      tar(root(), file("lib/b", "b"))
    ],
    differs: {
      why: "each layer is unpacked alone, as by containers/storage; an entry for the folder would be named usr/lib",
      expected: ({ "usr/lib/b": b, ...tree }) => ({
        ...tree,
        lib: { ...folderNode, mtime: "0" },
        "lib/b": b!
      })
    }
  },
  "capabilities, binary xattrs and those of overlayfs": {
    layers: [
      tar(
        root(),
        pax([
          ["SCHILY.xattr.security.capability", capability],
          ["SCHILY.xattr.user.binary", latin1("\x00\xff=\n\x01")]
        ]),
        file("f", "f", { uid: 1000, gid: 1000, mode: 0o755 }),
        pax([["SCHILY.xattr.user.of", "folder"]]),
        folder("d/", { uid: 3 })
      )
    ]
  },
  "set-user-ID, set-group-ID and sticky bits, with other owners": {
    layers: [
      tar(
        root(),
        file("su", "x", { mode: 0o4755, uid: 1000 }),
        file("sg", "x", { mode: 0o2711, gid: 1000 }),
        folder("sticky/", { mode: 0o1777 }),
        folder("sgd/", { mode: 0o2775, gid: 50 }),
        file("sgd/in", "x", { gid: 7, mode: 0o600 }),
        file("none", "x", { mode: 0 })
      )
    ]
  },
  "times with nanoseconds, before 1970, beyond 2^33, and of folders before their contents": {
    layers: [
      tar(
        root(),
        pax([["mtime", "1234567890.123456789"]]),
        file("ns"),
        pax([["mtime", "-1.25"]]),
        file("negative"),
        pax([["mtime", "8589934593.5"]]),
        file("far"),
        folder("d/", { mtime: 77 }),
        file("d/later", "x"),
        symlink("s", "ns", { mtime: 88 })
      )
    ]
  },
  "metadata of a folder after its contents, and of a repeated folder": {
    layers: [
      tar(root(), folder("d/"), file("d/f", "f"), folder("d/", { mode: 0o710, uid: 4, gid: 5, mtime: 99 })),
      tar(root(), folder("d/", { mode: 0o700, uid: 6, gid: 7, mtime: 100 }))
    ]
  },
  "owners above 2^21 and 2^31, in base 256 and in PAX": {
    layers: [
      tar(
        root(),
        file("base256", "", { uid: 2 ** 21 + 5, gid: 2 ** 31 + 6 }),
        pax([
          ["uid", "4294967294"],
          ["gid", "2097153"]
        ]),
        file("pax")
      )
    ]
  },
  "PAX and GNU long names and targets, components of 255 bytes": {
    layers: [
      tar(
        root(),
        pax([["path", `${name255}`]]),
        file("short", "pax"),
        long("L", `g${name255.slice(1)}`),
        file("short", "gnu", { format: "gnu" }),
        pax([["linkpath", `/${deep}`.slice(0, 1000)]]),
        symlink("paxlink", "short"),
        long("K", `/${deep}`.slice(0, 500)),
        symlink("gnulink", "short", { format: "gnu" })
      )
    ]
  },
  "names that are not UTF-8": {
    layers: [
      tar(
        root(),
        folder(latin1("d\xe9/")),
        file(latin1("d\xe9/\xff\x01"), "x"),
        symlink(latin1("l\xe8"), latin1("d\xe9"))
      )
    ]
  },
  "global PAX headers": {
    layers: [tar(pax([["comment", "from git"]], "g"), root(), file("a", "a"), file("b", "b"))],
    by: { tar: "umoci refuses a layer with global headers" }
  },
  "sparse files of GNU's formats 0.1 and 1.0": {
    layers: [
      tar(
        root(),
        pax([
          ["GNU.sparse.size", "200000"],
          ["GNU.sparse.numblocks", "1"],
          ["GNU.sparse.map", "100000,4"],
          ["GNU.sparse.name", "old"]
        ]),
        file("GNUSparseFile.0/old", "data"),
        pax([
          ["GNU.sparse.major", "1"],
          ["GNU.sparse.minor", "0"],
          ["GNU.sparse.name", "new"],
          ["GNU.sparse.realsize", "1000000"]
        ]),
        file("GNUSparseFile.0/new", concat("1\n500000\n4\n", new Uint8Array(501), "data"))
      )
    ]
  },
  "devices and fifos": {
    layers: [
      tar(
        root(),
        entry({ name: "null", type: "3", major: 1, minor: 3, mode: 0o666 }),
        entry({ name: "sda", type: "4", major: 8, minor: 0, mode: 0o660, gid: 6 }),
        entry({ name: "pipe", type: "6", mode: 0o622 })
      )
    ]
  },
  "`./`, `/` and doubled slashes in names": {
    layers: [
      tar(folder("/", { mode: 0o755 }), folder("./a//"), file("./a/./b", "b"), file("/c", "c"), root(5))
    ]
  },
  "parents without an entry": {
    layers: [tar(root(), file("a/b/c", "c"), folder("a/", { mode: 0o700, uid: 5, mtime: 9 }))],
    differs: {
      why: "the layer has no times for them; umoci sets the time of the unpack",
      expected: (tree) => ({ ...tree, "a/b": { ...tree["a/b"], mtime: "0" } })
    }
  },
  "a folder of mode 0000 with a file in it": {
    layers: [
      tar(root(), folder("locked/", { mode: 0 }), file("locked/in", "in")),
      tar(root(), folder("locked/", { mode: 0 }), file("locked/more", "more"))
    ]
  },
  "bytes after the end of the archive": {
    layers: [concat(tar(root(), file("a", "a")), file("b", "b"), "garbage")]
  },
  "gzip of several members": {
    layers: [tar(root(), file("a", "a".repeat(5000)), file("b", "b"))],
    blob: (tar) =>
      concat(gzipSync(tar.subarray(0, 700)), gzipSync(new Uint8Array()), gzipSync(tar.subarray(700)))
  },
  "a decompression bomb": {
    layers: [tar(root(), file("zeros", new Uint8Array(20_000_000)))],
    limits: { maxBytes: 10_000_000 },
    refused: "TooLarge"
  },
  "more entries than allowed": {
    layers: [tar(root(), ...Array.from({ length: 100 }, (_, k) => file(`${k}`)))],
    limits: { maxEntries: 50 },
    refused: "TooLarge"
  },
  "an archive whose last file is not padded, as umoci insert writes it": {
    layers: [concat(root(), header({ name: "a", size: 1 }), "a")]
  },
  "an archive that ends within a file": {
    layers: [concat(root(), header({ name: "a", size: 600 }), "a".repeat(599))],
    refused: "Corrupt"
  },
  "an archive that ends within a header": {
    layers: [concat(root(), file("a", "a"), header({ name: "b", size: 0 }).subarray(0, 200))],
    refused: "Corrupt"
  },
  "an archive without the blocks at its end, as umoci insert writes it": {
    layers: [concat(root(), file("a", "a"))]
  }
}

/** Writes the image of a case into a layout of its own. */
const makeLayout = (layout: string, { blob, layers }: Case): void => {
  fs.mkdirSync(layout)
  const written = layers.map((layer, i) =>
    blob === undefined
      ? ({ tar: layer, as: i === 0 ? "gzip" : "tar" } as const)
      : ({ tar: blob(layer), as: "tar", type: types.gzip } as const)
  )
  writeIndex(layout, [
    {
      ...writeImage(layout, written, { diffIds: layers.map(sha256) }),
      annotations: { "org.opencontainers.image.ref.name": "latest" }
    }
  ])
}

/** The expected result of a case, for the name of its test. */
const expectation = ({ by, differs, refused }: Case): string => {
  if (refused !== undefined) return `fails with ${refused}`
  if (by !== undefined) return "gives the same tree as GNU tar"
  return differs === undefined
    ? "gives the same tree as umoci"
    : "gives the tree of umoci but for a known difference"
}

/** The places that Berth makes in a root for the mounts of a container, if the image lacks them. */
const places = ["proc", "sys", "dev", "etc", "etc/hosts", "etc/hostname", "etc/resolv.conf"]

/** The tree without these places. A folder in which some of them are made has the time of that. */
const withoutPlaces = (ours: Tree, theirs: Tree): Tree =>
  Object.fromEntries(
    Object.entries(ours).flatMap(([path, node]) =>
      !places.includes(path)
        ? [[path, node]]
        : theirs[path] === undefined
          ? []
          : [[path, path === "etc" ? { ...node, mtime: theirs[path].mtime ?? "" } : node]]
    )
  )

suite("unpacking, compared with umoci", (effect) => {
  for (const [name, each] of Object.entries(cases))
    effect(
      `unpacking ${name} ${expectation(each)}`,
      function* () {
        const folder = yield* scratch
        makeLayout(`${folder}/layout`, each)
        const image = Image.fromLayout(`${folder}/layout`, each.limits)
        if (each.refused !== undefined) {
          const error = yield* failure("ImageError", image)
          assert.equal(error.reason, each.refused, error.message)
          return
        }
        const { mount } = yield* RootFs.overlay(yield* image)
        const ours = rooted(treeOf(`/proc/${process.pid}/fd/${mount}/`))
        const other = `${folder}/bundle/rootfs`
        if (each.by === undefined)
          sh("umoci", "unpack", "--image", `${folder}/layout:latest`, `${folder}/bundle`)
        else {
          fs.mkdirSync(other, { recursive: true })
          fs.writeFileSync(`${folder}/layer.tar`, each.layers[0]!)
          sh("tar", "-C", other, "--same-owner", "-xpf", `${folder}/layer.tar`)
        }
        const theirs = rooted(treeOf(other))
        const expected = each.differs === undefined ? theirs : each.differs.expected(theirs)
        assert.deepEqual(withoutPlaces(ours, expected), expected)
      },
      { skip: whyNoImages }
    )
})
