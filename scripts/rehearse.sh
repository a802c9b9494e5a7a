#!/usr/bin/env bash
# Deploy a lift policy to a simulated Panda over ROS 2 topics on this machine (DDS, no ROS needed), ten episodes, unattended:
# scripts/rehearse.sh <run> [env.<setting>=<value> that it was trained with ...]
set -euo pipefail
run="$1"
shift
bin="${BIN:-.venv/bin}"
domain=42 # never the user's own: a real arm may listen there
[ "${ROS_DOMAIN_ID:-0}" != "$domain" ] || domain=43
net=(transport=dds transport.interface=lo "transport.domain=$domain")
"$bin/visuomotor" twin robot=panda_twin task=lift latency_ms=20 "${net[@]}" "$@" &
twin=$!
trap 'kill $twin 2>/dev/null; wait $twin || true' EXIT # not -INT: a shell starts what runs beside it deaf to that
"$bin/visuomotor" deploy "checkpoint=$run" robot=panda_twin "${net[@]}" threads=1 episodes=10 seconds=8 start=auto </dev/null
