/** Berth's folder. */
import * as os from "node:os"
import { resolve } from "node:path"

export const defaultFolder = (rootless: boolean): string =>
  rootless ? `${process.env.XDG_DATA_HOME || `${os.homedir()}/.local/share`}/berth` : "/var/lib/berth"

/** The absolute path of the folder of a Berth with these options, for this process's user. */
export const folderOf = ({ folder }: { readonly folder?: string | undefined }): string =>
  resolve(folder ?? defaultFolder(process.geteuid!() !== 0))
