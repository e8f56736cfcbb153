/** The files that the Dockerfiles of the corpus copy. */
import { execFileSync } from "node:child_process"
import * as fs from "node:fs"

const texts: Readonly<Record<string, string>> = {
  ".dockerignore": "# a comment\n**/*.log\nignored\n!ignored/kept\nsecret*\n",
  "a.txt": "a\n",
  "b.txt": "b\n",
  "c.md": "c\n",
  "two words.txt": "two\n",
  "build.log": "log\n",
  "secret.key": "key\n",
  "ignored/dropped": "dropped\n",
  "ignored/kept": "kept\n",
  "dir/one": "one\n",
  "dir/sub/two": "two\n",
  "dir/sub/three.log": "log\n",
  "dir/.hidden": "hidden\n",
  "tolinks/real/x": "x\n"
}

/** Makes an archive of files with owners, modes, links and a fifo, in each compression, and files that only look like one. */
const archive = (folder: string): void => {
  const from = `${folder}/../archived`
  fs.mkdirSync(`${from}/inner/deep`, { recursive: true })
  fs.writeFileSync(`${from}/inner/file`, "archived\n")
  fs.linkSync(`${from}/inner/file`, `${from}/inner/deep/same`)
  fs.chmodSync(`${from}/inner/file`, 0o4750)
  fs.symlinkSync("file", `${from}/inner/link`)
  fs.chmodSync(`${from}/inner/deep`, 0o700)
  fs.chownSync(`${from}/inner/deep`, 5, 6)
  fs.writeFileSync(`${from}/top`, "top\n")
  fs.mkdirSync(`${folder}/archives`)
  for (const ending of ["tar", "tar.gz", "tar.bz2", "tar.xz", "tar.zst"])
    execFileSync("tar", ["-caf", `${folder}/archives/a.${ending}`, "-C", from, "inner", "top"])
  // What it is, its contents say.
  fs.copyFileSync(`${folder}/archives/a.tar.gz`, `${folder}/archives/plain.txt`)
  fs.writeFileSync(`${folder}/archives/empty.tar.gz`, "")
  fs.writeFileSync(`${folder}/archives/text.tar`, "no archive\n")
  execFileSync("sh", ["-c", `gzip -n < "$1/a.txt" > "$1/archives/text.gz"`, "sh", folder])
}

/** Makes the context in a folder. */
export const makeContext = (folder: string): void => {
  for (const [name, text] of Object.entries(texts)) {
    fs.mkdirSync(`${folder}/${name}`.replace(/[^/]*$/, ""), { recursive: true })
    fs.writeFileSync(`${folder}/${name}`, text)
  }
  fs.mkdirSync(`${folder}/dir/empty`)
  fs.chmodSync(`${folder}/dir/sub`, 0o750)
  fs.writeFileSync(`${folder}/dir/script`, "#!/bin/sh\n")
  fs.chmodSync(`${folder}/dir/script`, 0o755)
  fs.symlinkSync("one", `${folder}/dir/link`)
  fs.symlinkSync("/etc/passwd", `${folder}/dir/outside`)
  fs.symlinkSync("a.txt", `${folder}/link.txt`)
  fs.symlinkSync("dir", `${folder}/linkdir`)
  fs.symlinkSync("real", `${folder}/tolinks/tolink`)
  archive(folder)
}
