#!/usr/bin/env bash
# The whole pipeline on small models and embedded crystals: set up, train a VAE, train a diffusion
# model on its latents, sample crystals, fine-tune the model towards a density, sample again, and
# print a report. Minutes on a CPU.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash launch/setup_env.sh

logs=logs/quickstart/$(date +%Y-%m-%d_%H-%M-%S)
output=outputs/quickstart
seconds=()

# step <name> <module> <flags>: prints the command and runs it.
step() {
    local name=$1 started=$SECONDS
    shift
    printf '\n$ python -m %s\n' "$*"
    .venv/bin/python -m "$@"
    seconds+=("$name=$((SECONDS - started))")
}

# Prints the folder of the only run of a task.
run_of() {
    local runs=("$logs/$1/runs"/*)
    echo "${runs[0]}"
}

step 'train VAE' chemeleon2_jax.train --config=configs/train_vae.py:fast/vae_dng \
    --config.paths.log_dir="$logs"
vae_run=$(run_of train_vae)

step 'train latent diffusion' chemeleon2_jax.train --config=configs/train_ldm.py:fast/ldm_flow \
    --config.ldm_module.vae_ckpt_path="$vae_run" --config.paths.log_dir="$logs"
ldm_run=$(run_of train_ldm)

step 'sample' chemeleon2_jax.sample --model="$ldm_run" --num_samples=64 --seed=0 \
    --output_dir="$output" --cif

step 'fine-tune with rewards' chemeleon2_jax.train --config=configs/train_rl.py:fast/rl_density \
    --config.rl_module.ldm_ckpt_path="$ldm_run" --config.paths.log_dir="$logs"
rl_run=$(run_of train_rl)

step 'sample again' chemeleon2_jax.sample --model="$rl_run" --num_samples=64 --seed=0 \
    --output_dir="$output/rewarded" --cif

printf '\n'
.venv/bin/python launch/quickstart_report.py --vae_run="$vae_run" --ldm_run="$ldm_run" \
    --samples="$output" --rl_run="$rl_run" --rl_samples="$output/rewarded" \
    --seconds="$(IFS=,; echo "${seconds[*]}")"
