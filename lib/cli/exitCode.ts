/** The exit codes of commands other than `run`, whose own failures follow Docker's. The README has this table. */
export const ExitCode = {
  other: 1,
  commandLine: 2,
  notFound: 3,
  machine: 4,
  registry: 5,
  /** Of `run`, where the exit codes below are the container's. */
  run: 125
} as const
