/** The files that the Dockerfiles of the corpus copy. */
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
}
