// biome-ignore-all lint/suspicious/noTemplateCurlyInString: these are variables of Dockerfiles
/** COPY, ADD and WORKDIR. */
import type { Case } from "./case.ts"

export const files: ReadonlyArray<Case> = [
  { name: "COPY of a file to a name", text: "FROM base\nCOPY a.txt /b\n" },
  { name: "COPY of a file into a new folder", text: "FROM base\nCOPY a.txt /new/\n" },
  { name: "COPY of a file into a folder of the image", text: "FROM base\nCOPY a.txt /etc\n" },
  { name: "COPY of a file to a name in new folders", text: "FROM base\nCOPY a.txt /x/y/z\n" },
  { name: "COPY of several files", text: "FROM base\nCOPY a.txt b.txt c.md /texts/\n" },
  { name: "COPY of a folder's contents", text: "FROM base\nCOPY dir /copied\n" },
  { name: "COPY of a folder with a slash", text: "FROM base\nCOPY dir/ /copied/\n" },
  { name: "COPY of a folder into an existing one", text: "FROM base\nCOPY dir /etc/\n" },
  { name: "COPY of everything", text: "FROM base\nCOPY . /all/\n" },
  { name: "COPY of everything by a slash", text: "FROM base\nCOPY / /all/\n" },
  { name: "COPY by a pattern", text: "FROM base\nCOPY *.txt /texts/\n" },
  { name: "COPY by patterns with classes", text: "FROM base\nCOPY [a-b].t?t d*/on* /texts/\n" },
  { name: "COPY in its JSON form", text: 'FROM base\nCOPY ["two words.txt", "a.txt", "/two words/"]\n' },
  { name: "COPY with an owner by an unknown number", text: "FROM base\nCOPY --chown=12 a.txt /a\n" },
  { name: "COPY with a mode into new folders", text: "FROM base\nCOPY --chmod=0750 a.txt /new/a\n" },
  { name: "COPY with variables", text: "FROM base\nENV D=/to N=a\nCOPY ${N}.txt $D/\n" },
  {
    name: "COPY to a relative path",
    text: "FROM base\nWORKDIR /w\nCOPY a.txt .\nCOPY a.txt ./sub/\nCOPY a.txt x\n"
  },
  { name: "COPY with an owner by name", text: "FROM base\nCOPY --chown=app:staff dir /d\n" },
  { name: "COPY with an owner by number", text: "FROM base\nCOPY --chown=12:34 a.txt /new/a\n" },
  { name: "COPY with a user alone", text: "FROM base\nCOPY --chown=app a.txt /a\n" },
  { name: "COPY with a mode", text: "FROM base\nCOPY --chmod=0750 a.txt /a\n" },
  { name: "COPY with a mode for a folder", text: "FROM base\nCOPY --chmod=711 dir /d\n" },
  { name: "COPY as another user", text: "FROM base\nUSER app\nCOPY a.txt /a\n" },
  { name: "COPY over a file", text: "FROM base\nCOPY a.txt /etc/group\n" },
  { name: "COPY of a link by its name", text: "FROM base\nCOPY link.txt /l\n" },
  { name: "COPY of a link to a folder", text: "FROM base\nCOPY linkdir /l\n" },
  { name: "COPY of a path through a link", text: "FROM base\nCOPY linkdir/one /l\n" },
  {
    name: "COPY through a link of the image",
    text: "FROM base AS one\nCOPY tolinks /\nFROM one\nCOPY a.txt /tolink/a\n"
  },
  { name: "COPY with the path of a parent", text: "FROM base\nCOPY dir/../a.txt /x\n" },
  { name: "COPY with an absolute source", text: "FROM base\nCOPY /dir/one /x\n" },
  { name: "ADD of plain files", text: "FROM base\nADD a.txt dir /added/\n" },
  { name: "ADD of a folder with an owner", text: "FROM base\nADD --chown=1:2 dir /added\n" },
  { name: "WORKDIR makes folders", text: "FROM base\nWORKDIR /a/b\nWORKDIR c\nWORKDIR ../d\n" },
  { name: "WORKDIR that exists", text: "FROM base\nWORKDIR /home/app\nUSER app\nWORKDIR /home/app/x\n" },
  {
    name: "WORKDIR with a slash at its end",
    text: "FROM base\nWORKDIR /a/\nCOPY a.txt b\n",
    differs: { because: "Docker cleans the path", config: { WorkingDir: "/a" } }
  }
]
