/**
 * Podman and Docker beside Berth, for the other benchmarks. Each engine runs in network, mount and pid namespaces of its own: it adds a
 * bridge and rules of a firewall to the network that it runs in, and what it starts ends with it. Where podman is missing, its scripts
 * answer with what the shell says of that.
 */

import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { type Contender, findProgram, lineProgram, timed, Unmeasured } from "./support.ts"

const inNamespaces = ["--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]

/** Runs one of these scripts, which begin with what podman needs: its own folders, and netavark where it is there. */
const script = (text: string, args: ReadonlyArray<string>) =>
  lineProgram("unshare", [...inNamespaces, "sh", "-c", `${common}${text}`, "sh", ...args])

const common = `
  folder=$1
  ip link set lo up
  umount /sys/fs/cgroup/unified 2>/dev/null
  mkdir -p "$folder/etc"
  backend=cni
  [ ! -e /usr/lib/podman/netavark ] || backend=netavark
  printf '[network]\\nnetwork_backend = "%s"\\nnetwork_config_dir = "%s"\\n' "$backend" "$folder/etc" >"$folder/containers.conf"
  export CONTAINERS_CONF="$folder/containers.conf"
  crun="--runtime=crun --cgroups=disabled --ulimit=nofile=1024:1024 --ulimit=nproc=1024:1024"
  # Docker's engine, as the function "docker", until "end_docker".
  start_docker() {
    group=/berth-bench-$$
    docker() { command docker -H "unix://$folder/socket" "$@"; }
    dockerd --data-root "$folder/data" --exec-root "$folder/exec" --pidfile "$folder/pid" -H "unix://$folder/socket" \\
      --storage-driver "$1" --cgroup-parent "$group" >"$folder/log" 2>&1 &
    daemon=$!
    for k in $(seq 100); do docker version >/dev/null 2>&1 && break; sleep 0.1; done
  }
  end_docker() {
    kill "$daemon"
    wait "$daemon"
    find /sys/fs/cgroup/*"$group" -depth -type d -exec rmdir {} +
  }
  podman() {
    command podman --storage-driver "\${driver:-vfs}" --root "$folder/root" --runroot "$folder/run" --tmpdir "$folder/tmp" "$@"
  }
`

const podmanLoop = `
  mkdir -p "$folder/memory" "$folder/rootfs" &&
  mount -t tmpfs tmpfs "$folder/memory" && mkdir "$folder/memory/upper" "$folder/memory/work" &&
  mount -t overlay -o "lowerdir=/,upperdir=$folder/memory/upper,workdir=$folder/memory/work" overlay "$folder/rootfs"
  while read -r network; do
    if podman run --rm $crun --network="$network" --rootfs "$folder/rootfs" true </dev/null >/dev/null 2>"$folder/errors"
    then echo ok
    else tr '\\n' ' ' <"$folder/errors"; echo
    fi
  done
`

/** Starts of podman's containers with each of these networks. */
export const podmanStarts = (
  folder: string,
  networks: ReadonlyArray<string> = ["none", "bridge", "pasta"]
): Effect.Effect<ReadonlyArray<Contender>, never, Scope.Scope> =>
  Effect.map(script(podmanLoop, [folder]), ({ ask }) =>
    networks.map((network) => ({
      name: `podman --network=${network}`,
      run: timed(
        Effect.flatMap(ask(network), (answer) =>
          answer === "ok" ? Effect.void : new Unmeasured({ message: answer })
        )
      )
    }))
  )

// Prints a line when a server and another container run, and then, for each line "WAY KIND COUNT", what the client measures.
const trafficLoop = `
  client=$2 engine=$3
  end() {
    engine rm -f server client
    [ "$engine" != docker ] || end_docker
  } >/dev/null 2>&1
  trap end EXIT
  if [ "$engine" = docker ]; then
    engine() { docker "$@"; }
    start_docker vfs
  else
    engine() { podman "$@"; }
    options=--cgroups=disabled
  fi
  mkdir "$folder/image" && cp "$client" "$folder/image/client" || exit 1
  {
    tar -C "$folder/image" -c . | engine import - bench &&
    engine run -d --name server $options -p 127.0.0.1:7007:7 bench /client serve 7 &&
    engine run -d --name client $options bench /client serve 8
  } >"$folder/errors" 2>&1 </dev/null || { tr '\\n' ' ' <"$folder/errors"; echo; exit 1; }
  address=$(engine inspect -f '{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}' server)
  for k in $(seq 100); do "$client" connect 127.0.0.1 7007 >/dev/null 2>&1 && break; sleep 0.1; done
  echo ready
  while read -r way kind count; do
    case $way in
      published) "$client" "$kind" 127.0.0.1 7007 "$count" </dev/null ;;
      between) engine exec client /client "$kind" "$address" 7 "$count" </dev/null ;;
    esac || echo failed
  done
`

/** What a client measures, in milliseconds, by a port of the host and from another container. */
export interface Rival {
  readonly ways: ReadonlyArray<string>
  readonly contenders: (kind: string, count: number) => ReadonlyArray<Contender>
}

/** An engine with a server and a client in containers of its own; or why there is none. */
export const rival = (
  engine: "podman" | "docker",
  folder: string,
  client: string
): Effect.Effect<Rival, Unmeasured, Scope.Scope> =>
  Effect.gen(function* () {
    const program = engine === "docker" ? "dockerd" : engine
    if (findProgram(program) === undefined) return yield* new Unmeasured({ message: `no ${program}` })
    const { ask } = yield* script(trafficLoop, [folder, client, engine])
    const ready = yield* ask("")
    if (ready !== "ready") return yield* new Unmeasured({ message: ready })
    const ways = [`${engine}, published port`, `${engine}, container to container`]
    const contenders = (kind: string, count: number) =>
      ["published", "between"].map((way, place) => ({
        name: ways[place]!,
        run: Effect.flatMap(ask(`${way} ${kind} ${count}`), (answer) =>
          Number.isFinite(Number.parseFloat(answer))
            ? Effect.succeed(Number.parseFloat(answer) / 1000)
            : new Unmeasured({ message: answer })
        )
      }))
    return { ways, contenders }
  })

// For each line "go VOLUME", a new server of the image with its data in that volume, or without one: microseconds until psql by a port of
// the host has an answer.
const postgresLoop = `
  layout=$2 engine=$3
  failed() { tr '\\n' ' ' <"$folder/errors"; echo; exit 1; }
  if [ "$engine" = docker ]; then
    command -v dockerd >/dev/null || { echo "no dockerd"; exit 1; }
    trap 'end_docker >/dev/null 2>&1' EXIT
    engine() { docker "$@"; }
    options=
    # Docker's archives have no layers of zstd.
    copy() { skopeo copy --quiet "$@" >"$folder/errors" 2>&1 </dev/null; }
    mkdir "$folder/data" && mount -t tmpfs tmpfs "$folder/data" && start_docker overlay2 &&
    copy --dest-compress --dest-compress-format=gzip "oci:$layout" "oci:$folder/gzip" &&
    copy "oci:$folder/gzip" "docker-archive:$folder/archive.tar:bench:latest" &&
    docker load --quiet --input "$folder/archive.tar" >"$folder/errors" 2>&1 </dev/null || failed
    image=bench:latest
  else
    driver=overlay
    engine() { podman "$@"; }
    options=$crun
    mkdir "$folder/root" && mount -t tmpfs tmpfs "$folder/root" &&
    image=$(podman pull --quiet "oci:$layout" 2>"$folder/errors" </dev/null) || failed
  fi
  export PGPASSWORD=postgres
  while read -r go volume; do
    begun=$(date +%s%N)
    if engine run -d --name server $options \${volume:+-v $volume:/var/lib/postgresql} -p 127.0.0.1:7432:5432 \\
      "$image" >"$folder/errors" 2>&1 </dev/null
    then
      for k in $(seq 3000); do
        psql -h 127.0.0.1 -p 7432 -U postgres -c "select 1" >"$folder/errors" 2>&1 </dev/null && break
        sleep 0.01
      done
      took=$((($(date +%s%N) - begun) / 1000))
      { engine stop -t 20 server && engine rm -f server; } >/dev/null 2>&1 </dev/null
      echo $took
    else
      tr '\\n' ' ' <"$folder/errors"; echo
      engine rm -f server >/dev/null 2>&1 </dev/null
    fi
  done
`

/**
 * A new PostgreSQL of an OCI layout by an engine with a published port, to the first answer; and the same with a volume that the first one
 * has prepared, and each leaves as it stopped.
 */
export const enginePostgres = (
  engine: "podman" | "docker",
  [name, withVolume]: readonly [string, string],
  folder: string,
  layout: string
): Effect.Effect<ReadonlyArray<Contender>, never, Scope.Scope> =>
  Effect.map(script(postgresLoop, [folder, layout, engine]), ({ ask }) =>
    [
      { name, line: "go" },
      { name: withVolume, line: "go prepared" }
    ].map(({ line, name }) => ({
      name,
      run: Effect.flatMap(ask(line), (answer) =>
        Number(answer) > 0 ? Effect.succeed(Number(answer) / 1000) : new Unmeasured({ message: answer })
      )
    }))
  )

// For each line, the start of a service of one task on a Swarm of one node: microseconds until its container runs.
const swarmLoop = `
  client=$2
  trap '{ docker service rm server; end_docker; } >/dev/null 2>&1' EXIT
  mkdir "$folder/data" && mount -t tmpfs tmpfs "$folder/data" && start_docker overlay2
  mkdir "$folder/image" && cp "$client" "$folder/image/client" &&
  tar -C "$folder/image" -c . | docker import - bench:latest >"$folder/errors" 2>&1 &&
  docker swarm init --advertise-addr 127.0.0.1 >"$folder/errors" 2>&1 </dev/null ||
  { tr '\\n' ' ' <"$folder/errors"; echo; exit 1; }
  while read -r line; do
    begun=$(date +%s%N)
    docker service create --detach --quiet --no-resolve-image --name server --limit-memory 16MB \\
      bench:latest /client serve 7 >"$folder/errors" 2>&1 </dev/null
    for k in $(seq 2000); do
      running=$(docker ps --quiet --filter label=com.docker.swarm.service.name=server 2>"$folder/errors" </dev/null)
      [ -z "$running" ] || break
      sleep 0.01
    done
    took=$((($(date +%s%N) - begun) / 1000))
    docker service rm server >/dev/null 2>&1 </dev/null
    while [ -n "$(docker ps --quiet </dev/null)" ]; do sleep 0.1; done
    if [ -n "$running" ]; then echo "$took"; else tr '\\n' ' ' <"$folder/errors"; echo; fi
  done
`

/** A service of Docker Swarm, from its creation until its container runs; `client` is a program that needs no other file. */
export const swarmService = (folder: string, client: string): Effect.Effect<Contender, never, Scope.Scope> =>
  Effect.map(script(swarmLoop, [folder, client]), ({ ask }) => ({
    name: "docker swarm, a service",
    run: Effect.flatMap(ask("go"), (answer) =>
      Number(answer) > 0 ? Effect.succeed(Number(answer) / 1000) : new Unmeasured({ message: answer })
    )
  }))

// For each line, a build with this value of NONCE: microseconds.
const buildLoop = `
  archive=$2 context=$3
  trap 'end_docker >/dev/null 2>&1' EXIT
  mkdir "$folder/data" && mount -t tmpfs tmpfs "$folder/data" && start_docker overlay2
  docker load --quiet --input "$archive" >"$folder/errors" 2>&1 </dev/null || { tr '\\n' ' ' <"$folder/errors"; echo; exit 1; }
  # The API of the engine, as the client of Debian lacks a part for it.
  tar -C "$context" -cf "$folder/context.tar" .
  while read -r nonce; do
    begun=$(date +%s%N)
    curl -sS --unix-socket "$folder/socket" -H 'content-type: application/x-tar' --data-binary "@$folder/context.tar" \\
      "http://docker/build?version=2&buildargs=%7B%22NONCE%22%3A%22$nonce%22%7D" >"$folder/answer" 2>&1 </dev/null
    if grep -q '"moby.image.id"' "$folder/answer"
    then echo $((($(date +%s%N) - begun) / 1000))
    else head -c 2000 "$folder/answer" | tr '\\r\\n' '  '; echo
    fi
  done
`

/** Docker's BuildKit with an image of `archive`: a build of a context, by a value of its variable NONCE. */
export const dockerBuild = (
  folder: string,
  archive: string,
  context: string
): Effect.Effect<(nonce: string) => Effect.Effect<number, Unmeasured>, Unmeasured, Scope.Scope> =>
  Effect.gen(function* () {
    if (findProgram("dockerd") === undefined) return yield* new Unmeasured({ message: "no dockerd" })
    const { ask } = yield* script(buildLoop, [folder, archive, context])
    return (nonce) =>
      Effect.flatMap(ask(nonce), (answer) =>
        Number(answer) > 0 ? Effect.succeed(Number(answer) / 1000) : new Unmeasured({ message: answer })
      )
  })
