#!/usr/bin/env bash
# Run a program on every node of T2I_NODES (the first is this one) under accelerate: the same command on each, in the
# same folder of a shared file system. DVC runs on the first node alone and names this script in T2I_LAUNCHER.
#   T2I_NODES="node1 node2" T2I_LAUNCHER=launch/two-nodes.sh make repro
# T2I_NODES_CONFIG: another configuration than launch/two-nodes.yaml; T2I_SSH: another way to reach a node than ssh.
set -u
read -ra nodes <<< "${T2I_NODES:?names the nodes, this one first: T2I_NODES=\"node1 node2\"}"
config=${T2I_NODES_CONFIG:-launch/two-nodes.yaml}

launcher() { # machine_rank program...
    local place=$1
    shift
    printf '%q ' accelerate launch --config_file "$config" --num_machines "${#nodes[@]}" \
        --machine_rank "$place" --main_process_ip "${nodes[0]}" "$@"
}

# What the program reads of the environment here, it reads there. It travels over stdin: a key is nobody's to see in `ps`.
settings=$(compgen -e | grep -E '^(PATH|PYTHONPATH|OMP_NUM_THREADS|HF_.*|TORCH_HOME|.*_(PROXY|proxy)|SSL_CERT_FILE|REQUESTS_CA_BUNDLE|DVC_.*|MLFLOW_.*|T2I_.*|.*_API_KEY)$')
carried=$(for name in $settings; do printf 'export %s=%q\n' "$name" "${!name}"; done)

running=()
end() { kill "${running[@]}" 2> /dev/null; }
trap end EXIT
trap 'exit 143' TERM INT
for ((place = 1; place < ${#nodes[@]}; place++)); do
    ${T2I_SSH:-ssh} "${nodes[place]}" bash -s \
        <<< "cd $(printf '%q' "$PWD")"$'\n'"$carried"$'\n'"exec $(launcher "$place" "$@") < /dev/null" &
    running+=($!)
done
eval "$(launcher 0 "$@")" &
running+=($!)
status=0
for ((count = ${#running[@]}; count > 0; count--)); do
    wait -n "${running[@]}" || { status=$?; break; }
done
exit "$status"
