// biome-ignore-all lint/suspicious/noTemplateCurlyInString: these are variables of Dockerfiles
/** Instructions that change the configuration alone. */
import type { Case } from "./case.ts"

export const config: ReadonlyArray<Case> = [
  { name: "FROM alone", text: "FROM base\n" },
  { name: "keywords in any case", text: "from base\nenv A=1\nCmd true\n" },
  { name: "ENV with pairs", text: "FROM base\nENV A=1 B=2 \\\n  C=3\n" },
  { name: "ENV in its old form", text: 'FROM base\nENV A one  two "three"\n' },
  {
    name: "ENV with quotes and escapes",
    text: 'FROM base\nENV A="a b" B=\'c $A\' C=d\\ e D="f\\"g" E=\\$A\n'
  },
  {
    name: "ENV that refers to what is before its line",
    text: "FROM base\nENV A=1\nENV A=2 B=$A\nENV C=${A}${B}\n"
  },
  { name: "ENV that is empty", text: "FROM base\nENV A= B=\"\" C=''\n" },
  { name: "ENV that replaces a variable of the base", text: "FROM base\nENV PATH=/opt/bin:$PATH\n" },
  { name: "ENV with signs of equality", text: "FROM base\nENV A=b=c D==\n" },
  {
    name: "LABEL with pairs, quotes and variables",
    text: 'FROM base\nENV V=7\nLABEL a=1 "b c"="d e" f=$V\nLABEL a=2\n'
  },
  { name: "LABEL over lines", text: 'FROM base\nLABEL a="one \\\ntwo" \\\n b=2\n' },
  { name: "LABEL in its old form", text: "FROM base\nLABEL a b c\n" },
  { name: "EXPOSE with protocols", text: "FROM base\nEXPOSE 80 53/udp 22/tcp\n" },
  {
    name: "EXPOSE with ranges",
    text: "FROM base\nEXPOSE 8000-8002/udp\n",
    differs: {
      because: "Docker makes each port of a range one of the image",
      config: { ExposedPorts: { "8000/udp": {}, "8001/udp": {}, "8002/udp": {} } }
    }
  },
  { name: "EXPOSE with a variable", text: "FROM base\nARG P=81\nEXPOSE $P ${P}/udp\n" },
  {
    name: "VOLUME in its JSON form",
    text: 'FROM base\nVOLUME ["/data", "/two words"]\n',
    differs: {
      because: "VOLUME declares a mount point, and docker run makes it: a build changes no file",
      tree: { data: null, "two words": null }
    }
  },
  {
    name: "VOLUME as words",
    text: "FROM base\nENV V=/v\nVOLUME /data $V/x\n",
    differs: {
      because: "VOLUME declares a mount point, and docker run makes it: a build changes no file",
      tree: { data: null, v: null, "v/x": null }
    }
  },
  { name: "USER by name, by number and with a group", text: "FROM base\nUSER app\nUSER 1000:1001\n" },
  { name: "USER with a variable", text: "FROM base\nARG U=app\nUSER ${U}:staff\n" },
  { name: "STOPSIGNAL by name", text: "FROM base\nSTOPSIGNAL SIGUSR1\n" },
  { name: "STOPSIGNAL by number", text: "FROM base\nARG S=9\nSTOPSIGNAL $S\n" },
  { name: "CMD in the form of a shell", text: 'FROM base\nCMD echo $HOME "a b" && true\n' },
  { name: "CMD in its JSON form", text: 'FROM base\nCMD ["echo", "$HOME", "a\\tb"]\n' },
  { name: "CMD that is no JSON", text: "FROM base\nCMD ['echo', 'x']\n" },
  { name: "CMD twice", text: 'FROM base\nCMD ["a"]\nCMD ["b"]\n' },
  { name: "ENTRYPOINT and then CMD", text: 'FROM base\nENTRYPOINT ["/bin/echo"]\nCMD ["x"]\n' },
  { name: "CMD and then ENTRYPOINT", text: 'FROM base\nCMD ["x"]\nENTRYPOINT ["/bin/echo"]\n' },
  { name: "ENTRYPOINT in the form of a shell", text: "FROM base\nENTRYPOINT exec top -b\n" },
  {
    name: "ENTRYPOINT on a base with CMD",
    text: 'FROM base AS one\nCMD ["x"]\nFROM one\nENTRYPOINT ["/bin/echo"]\n'
  },
  {
    name: "HEALTHCHECK with all times",
    text: "FROM base\nHEALTHCHECK --interval=1m30s --timeout=2s --start-period=500ms --retries=5 CMD curl -f http://localhost/ || exit 1\n"
  },
  { name: "HEALTHCHECK in its JSON form", text: 'FROM base\nHEALTHCHECK CMD ["true", "x"]\n' },
  { name: "HEALTHCHECK NONE", text: "FROM base\nHEALTHCHECK NONE\n" },
  {
    name: "SHELL for CMD and ENTRYPOINT",
    text: 'FROM base\nSHELL ["/bin/sh", "-ec"]\nCMD echo x\nENTRYPOINT echo y\n',
    differs: {
      because: "SHELL is the shell of RUN, CMD and ENTRYPOINT in their shell form",
      config: { Cmd: ["/bin/sh", "-ec", "echo x"], Entrypoint: ["/bin/sh", "-ec", "echo y"] }
    }
  },
  { name: "ONBUILD that is kept", text: "FROM base\nONBUILD RUN echo x\nONBUILD COPY . /app\n" },
  {
    name: "MAINTAINER",
    text: "FROM base\nMAINTAINER Some Body <some@body.test>\n"
  },
  {
    name: "comments, empty lines and spaces",
    text: "# a comment\n\n  FROM base\n\n  # another\n\tENV A=1 \\\n# between\n\n  B=2\n"
  },
  { name: "Windows' ends of lines", text: "FROM base\r\nENV A=1\r\nLABEL b=\\\r\n2\r\n" }
]
