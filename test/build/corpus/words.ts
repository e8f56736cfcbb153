// biome-ignore-all lint/suspicious/noTemplateCurlyInString: these are variables of Dockerfiles
/** Variables, arguments and directives. */
import type { Case } from "./case.ts"

export const words: ReadonlyArray<Case> = [
  { name: "ARG with and without a value", text: "FROM base\nARG A\nARG B=2\nARG C=${B}3\nENV E=$A-$B-$C\n" },
  {
    name: "ARG with values of the caller",
    text: "FROM base\nARG A\nARG B=2\nENV E=$A-$B\n",
    args: { A: "1", B: "x y" }
  },
  {
    name: "ARG before FROM",
    text: "ARG BASE=base\nARG V=1\nFROM ${BASE}\nARG V\nENV E=$V\n",
    args: { V: "2" }
  },
  { name: "ARG before FROM without a declaration in the stage", text: "ARG V=1\nFROM base\nENV E=a${V}b\n" },
  {
    name: "ENV is stronger than ARG",
    text: "FROM base\nENV A=env\nARG A=arg\nLABEL a=$A\n",
    args: { A: "given" }
  },
  { name: "several ARG in a line", text: "FROM base\nARG A=1 B=2\nENV E=$A$B\n" },
  {
    name: "ARG of one stage is not in the next",
    text: "FROM base AS one\nARG A=1\nFROM base\nENV E=x$A\n",
    args: { A: "2" }
  },
  {
    name: "defaults and alternatives",
    text: "FROM base\nENV S=set N=\nENV A=${S:-d} B=${N:-d} C=${U:-d} D=${S:+a} E=${N:+a} F=${U:+a}\n"
  },
  { name: "defaults that are nested", text: "FROM base\nENV A=1\nENV B=${U:-${A}} C=${U:-x${V:-y}}\n" },
  { name: "braces and names in a row", text: "FROM base\nENV A=1 A_B=2\nENV C=$A_B${A}_B$A-B\n" },
  { name: "a dollar that is no variable", text: 'FROM base\nENV A=1\nENV B=a$ C="$ x" D=\\${A}\n' },
  { name: "single quotes keep variables", text: "FROM base\nENV A=1\nENV B='$A' C=\"'$A'\"\n" },
  {
    name: "the escape directive",
    text: "# escape=`\nFROM base\nENV A=1 `\n  B=c:\\dir\\x C=`$A\n",
    differs: {
      because: "the directive sets the character that escapes within a line too",
      config: {
        Env: [
          "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
          "A=1",
          "B=c:\\dir\\x",
          "C=$A"
        ]
      }
    }
  },
  { name: "the syntax directive", text: "# syntax=docker/dockerfile:1\nFROM base\nENV A=1\n" },
  { name: "WORKDIR with a variable", text: "FROM base\nENV D=/a\nWORKDIR $D/${X:-b}\nWORKDIR c\n" },
  {
    name: "what a pattern matches is taken away",
    text: "FROM base\nENV P=/usr/lib/x.tar.gz\nENV A=${P#*/} B=${P##*/} C=${P%.*} D=${P%%.*} E=${P/lib/l} F=${P//\\//-}\n",
    instead: {
      text: "FROM base\nENV P=/usr/lib/x.tar.gz\nENV A=usr/lib/x.tar.gz B=x.tar.gz C=/usr/lib/x.tar D=/usr/lib/x E=/usr/l/x.tar.gz F=-usr-lib-x.tar.gz\n",
      because: "buildah 1.28 has no patterns in variables"
    }
  }
]
