/** ADD of archives and addresses, and the flags of COPY and ADD. */
import type { Case } from "./case.ts"

const without = (flag: string) => `buildah 1.28 has no ${flag}`

export const add: ReadonlyArray<Case> = [
  ...["tar", "tar.gz", "tar.bz2", "tar.xz"].map((ending) => ({
    name: `ADD of an archive, ${ending}`,
    text: `FROM base\nADD archives/a.${ending} /added\n`
  })),
  {
    name: "ADD of an archive, tar.zst",
    text: "FROM base\nADD archives/a.tar.zst /added\n",
    instead: { text: "FROM base\nADD archives/a.tar.gz /added\n", because: "buildah 1.28 copies it as it is" }
  },
  {
    name: "ADD of an archive onto files",
    text: "FROM base\nCOPY dir /added/inner\nADD archives/a.tar /added/\n"
  },
  { name: "ADD of an archive to the root", text: "FROM base\nADD archives/a.tar.gz /\n" },
  { name: "ADD of an archive with another name", text: "FROM base\nADD archives/plain.txt /added/\n" },
  {
    name: "ADD of files that are no archives",
    text: "FROM base\nADD archives/empty.tar.gz archives/text.tar archives/text.gz /added/\n"
  },
  {
    name: "ADD of an archive with an owner",
    text: "FROM base\nADD --chown=app:staff archives/a.tar.gz /added/\n",
    differs: {
      because: "all new files have the owner of --chown; buildah leaves those of an archive as they are",
      tree: {
        "added/inner": "d 755 1000:1001",
        "added/inner/deep": "d 700 1000:1001",
        "added/inner/deep/same": "f 4750 1000:1001 3eb992486b31ee03",
        "added/inner/file": "f 4750 1000:1001 3eb992486b31ee03",
        "added/inner/link": "l 777 1000:1001 file",
        "added/top": "f 644 1000:1001 f7de2947c64cb643"
      }
    }
  },
  { name: "ADD of several archives and a file", text: "FROM base\nADD archives/a.tar a.txt /added/\n" },
  { name: "ADD on scratch", text: "FROM scratch\nADD archives/a.tar.xz /\n" },
  { name: "COPY of an archive", text: "FROM base\nCOPY archives/a.tar.gz /copied/\n" },
  { name: "ADD of an address to a name", text: "FROM base\nADD URL/a.txt /added\n" },
  { name: "ADD of an address into a folder", text: "FROM base\nADD URL/dir/one /added/\n" },
  { name: "ADD of an address with an owner", text: "FROM base\nADD --chown=1:2 URL/a.txt /added/\n" },
  { name: "ADD of an archive's address", text: "FROM base\nADD URL/archives/a.tar.gz /added/\n" },
  { name: "ADD of an address that redirects", text: "FROM base\nADD URL/redirect/a.txt /added/\n" },
  {
    name: "ADD --unpack of an address",
    text: "FROM base\nADD --unpack=true URL/archives/a.tar.gz /added/\n",
    instead: { text: "FROM base\nADD archives/a.tar.gz /added/\n", because: without("--unpack") }
  },
  {
    name: "ADD --unpack=false",
    text: "FROM base\nADD --unpack=false archives/a.tar /added/\n",
    instead: { text: "FROM base\nCOPY archives/a.tar /added/\n", because: without("--unpack") }
  },
  {
    name: "ADD --checksum",
    text: "FROM base\nADD --checksum=sha256:87428fc522803d31065e7bce3cf03fe475096631e5e07bbd7a0fde60c4cf25c7 URL/a.txt /added/\n",
    instead: { text: "FROM base\nADD URL/a.txt /added/\n", because: without("--checksum") }
  },
  {
    name: "COPY --parents",
    text: "FROM base\nCOPY --parents dir/sub/two a.txt /p/\n",
    instead: {
      text: "FROM base\nCOPY a.txt /p/\nCOPY dir/sub/two /p/dir/sub/two\nRUN chmod 750 /p/dir/sub\n",
      because: without("--parents")
    }
  },
  {
    name: "COPY --parents after a pivot, of a folder",
    text: "FROM base\nCOPY --parents dir/./sub /p/\n",
    instead: { text: "FROM base\nCOPY dir/sub /p/sub\nRUN chmod 750 /p/sub\n", because: without("--parents") }
  },
  {
    name: "COPY --parents with patterns of any depth",
    text: "FROM base\nCOPY --parents ./dir/**/t* *.txt /p/\n",
    instead: {
      text: "FROM base\nCOPY *.txt /p/\nCOPY dir/sub/two /p/dir/sub/two\nRUN chmod 750 /p/dir/sub\n",
      because: without("--parents")
    }
  },
  {
    name: "COPY --exclude",
    text: "FROM base\nCOPY --exclude=*/two --exclude=.h* --exclude=empty dir /e/\n",
    instead: {
      text: "FROM base\nCOPY dir /e/\nRUN rm -r /e/sub/two /e/.hidden /e/empty\n",
      because: without("--exclude")
    }
  },
  {
    name: "COPY --exclude of files by a pattern",
    text: "FROM base\nCOPY --exclude=b* *.txt /e/\n",
    instead: {
      text: 'FROM base\nCOPY ["a.txt", "link.txt", "two words.txt", "/e/"]\n',
      because: without("--exclude")
    }
  },
  {
    name: "ADD --exclude",
    text: "FROM base\nADD --exclude=** --exclude=!one dir /e/\n",
    instead: { text: "FROM base\nCOPY dir/one /e/\n", because: without("--exclude") }
  },
  {
    name: "COPY --chmod with symbols",
    text: "FROM base\nCOPY --chmod=u=rwX,go=rX,o-r dir/script a.txt /m/\n",
    instead: {
      text: "FROM base\nCOPY dir/script a.txt /m/\nRUN chmod 751 /m/script && chmod 640 /m/a.txt\n",
      because: "buildah 1.28 takes octal digits alone"
    }
  },
  {
    name: "COPY --link",
    text: "FROM base\nCOPY --link a.txt /l/\n",
    instead: { text: "FROM base\nCOPY a.txt /l/\n", because: without("--link") }
  },
  {
    name: "here-documents beside files",
    text: "FROM base\nENV N=name\nCOPY a.txt <<one <<'two' /h/\n$N\none\n$N\ntwo\n",
    instead: {
      text: "FROM base\nENV N=name\nCOPY a.txt /h/\nRUN echo name > /h/one && echo '$N' > /h/two\n",
      because: "buildah 1.28 has no here-documents"
    }
  },
  {
    name: "a here-document to a name, with an owner and a mode",
    text: "FROM base\nCOPY --chown=app --chmod=600 <<-X /h/y\n\tone\n\tX\n",
    instead: {
      text: "FROM base\nRUN mkdir /h && echo one > /h/y && chmod 600 /h/y && chown app:staff /h /h/y\n",
      because: "buildah 1.28 has no here-documents"
    }
  },
  {
    name: "RUN of a here-document",
    text: "FROM base\nRUN <<X\necho one > /r\necho $HOME >> /r\nX\nRUN <<Y cat > /s\ntext\nY\n",
    instead: {
      text: "FROM base\nRUN echo one > /r && echo $HOME >> /r\nRUN echo text > /s\n",
      because: "buildah 1.28 has no here-documents"
    }
  },
  {
    name: "RUN with a bind",
    text: "FROM base\nRUN --mount=type=bind,source=dir,target=/b cp /b/one /made\n"
  },
  {
    name: "RUN with a bind of a stage",
    text: "FROM base AS one\nCOPY dir /d\nFROM base\nRUN --mount=type=bind,from=one,source=/d/sub,target=/b cp /b/two /made\n"
  },
  {
    name: "RUN with a tmpfs and a cache",
    text: "FROM base\nRUN --mount=type=tmpfs,target=/t --mount=type=cache,target=/c touch /t/x && echo y > /made\n"
  }
]
