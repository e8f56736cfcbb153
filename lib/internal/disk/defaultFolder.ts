/** The default of Berth's folder. */
import * as os from "node:os"

export const defaultFolder = (rootless: boolean): string =>
  rootless ? `${process.env.XDG_DATA_HOME || `${os.homedir()}/.local/share`}/berth` : "/var/lib/berth"
