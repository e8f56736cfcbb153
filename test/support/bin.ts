/** The command `berth`, as a program of this folder. */
import "../../lib/bin.ts"
