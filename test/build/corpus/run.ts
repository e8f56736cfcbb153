// biome-ignore-all lint/suspicious/noTemplateCurlyInString: these are variables of Dockerfiles
/** RUN, and builds of several stages. */
import type { Case } from "./case.ts"

export const run: ReadonlyArray<Case> = [
  {
    name: "RUN in both forms",
    text: 'FROM base\nRUN echo "$HOME" > /shell && mkdir /d\nRUN ["touch", "/d/$HOME"]\n'
  },
  {
    name: "RUN over lines with a comment",
    text: "FROM base\nRUN echo a > /a && \\\n# a comment\n  echo b \\\n  > /b\n"
  },
  {
    name: "RUN with arguments and variables",
    text: "FROM base\nARG A=1\nENV B=2\nRUN echo $A $B ${C:-3} > /x\n"
  },
  {
    name: "RUN as a user in a working directory",
    text: "FROM base\nWORKDIR /home/app\nRUN chown app:staff .\nUSER app\nRUN id -u > id && umask 077 && touch private\n"
  },
  {
    name: "RUN that removes files and folders",
    text: "FROM base\nCOPY dir /d\nRUN rm /d/one && rm -r /d/sub && rm /etc/group && mkdir /d/sub\n"
  },
  {
    name: "RUN with modes, links and a fifo",
    text: "FROM base\nRUN echo x > /f && chmod 4751 /f && ln -s f /l && ln /f /h && mkfifo /p && chown 5:6 /p && mkdir -m 1777 /t\n"
  },
  {
    name: "SHELL for RUN",
    text: 'FROM base\nSHELL ["/bin/sh", "-c", "echo \\"$0\\" > /said"]\nRUN words of it\n'
  },
  {
    name: "stages and COPY between them",
    text: "FROM base AS build\nRUN mkdir /out && echo tool > /out/tool && chown 3:4 /out/tool && chmod 751 /out/tool\nFROM base\nCOPY --from=build /out /opt\nCOPY --from=0 /out/tool /bin/tool\n"
  },
  {
    name: "a stage on a stage",
    text: "FROM base AS one\nENV A=1\nCOPY a.txt /a\nFROM one AS two\nENV B=$A\nCOPY b.txt /b\n"
  },
  {
    name: "a stage that is the target",
    text: "FROM base AS one\nENV A=1\nFROM base AS two\nENV B=2\nRUN exit 1\n",
    target: "one"
  },
  {
    name: "FROM scratch with files of a stage",
    text: "FROM base AS one\nCOPY dir /d\nFROM scratch\nCOPY --from=one /d /\n"
  },
  {
    name: "COPY --from with an owner",
    text: "FROM base AS one\nCOPY --chown=1:2 dir /d\nFROM base\nCOPY --from=one --chown=app /d /e\nCOPY --from=one /d/one /f\n"
  },
  { name: "COPY --from an image", text: "FROM scratch\nCOPY --from=base /etc/passwd /p\n" },
  {
    name: "COPY of everything of a stage on scratch",
    text: "FROM scratch AS one\nCOPY dir /\nFROM base\nCOPY --from=one / /all/\n"
  }
]
