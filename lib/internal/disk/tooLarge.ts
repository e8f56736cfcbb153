import { ImageError } from "../../BerthError.ts"

export const tooLarge = (subject: string, size: number, limit: number): ImageError =>
  new ImageError({
    reason: "TooLarge",
    subject,
    detail: `is ${size} bytes; the limit is ${limit}`
  })
