/** For test/run.ts, which bundles the files of this folder: programs of tests load the bundle faster. */
export * from "../../lib/promiseFixtures.ts"
