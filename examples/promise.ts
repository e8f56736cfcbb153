// Berth without Effect: promises, `await using`, and a tagged template that quotes its arguments; no shell sees them.
import { start } from "berth/promise"

await using box = await start("host", { command: ["sleep", "infinity"] })
const { stdout } = await box.$`uname -n`
console.log(stdout.trimEnd())

const awkward = "two words; $(reboot) 'and' a\nnewline"
console.log((await box.$`printf %s ${awkward}`).stdout === awkward)
