#!/usr/bin/env bash
# Everything that a GPU has to measure, in one go: the 14 from-scratch rows of Table 1, speed, recipe=modern as it is and
# tuned on held-out train images, what its parts give, seeds, why SGD fails, and several jobs on one card.
#
#   BAGNET_DATA=data OUT=gpu_results benchmarks/gpu_table1.sh [STEP[:SECONDS]...]
#
# The machine needs Python with torch, torchvision, pytorch-lightning, torchmetrics and matplotlib; what else is missing
# is installed from WHEELS, a folder of wheels (here: pip wheel --no-deps -w wheels hydra-core==1.3.8 omegaconf==2.3.1
# antlr4-python3-runtime==4.9.3; safetensors and rich where they are missing, too).
#
# A step that is done is skipped, one that was broken off goes on where it was: run the same command again. Runs live in
# WORK; OUT gets two small files after every step, results.tar.gz and summary.txt. On a new machine, RESUME=FILE is the
# results.tar.gz of an earlier one.
#
#   BUDGET      seconds for this call; a step gets what is left of it, at most, or its own SECONDS. For a quarter of an
#               hour, with WORK on a disk in memory: compile and smoke, a call each at the same time, while the data are
#               copied (105 and 137 s on an H200 with 16 cores), then data (28 s), and what is wanted most of the rest:
#               15 epochs of a BagNet take 110 to 130 s there, SPEED="--models bagnet33 --plain-steps 60" 70 s
#   BAGNET_COMMIT  what results say of the code, where this copy of it has no .git
#   OVERRIDES   of every training instead of validation in batches of 1,000; to rehearse:
#               OVERRIDES="++trainer.limit_train_batches=3 ++trainer.limit_val_batches=1 data.batch_size=8
#               data.eval_batch_size=8 data.classes=5 data.images_per_class=20 trainer.max_epochs=1"
#   PATIENCE    multiplies the limits, on a slow machine
#   ROWS        of conf/table1/, instead of all 14
#   SPEED       arguments of train_speed.py
#   VARIANTS    lines NAME ARGUMENTS... for train_speed.py, instead of those below
#   TUNE        arguments of tune.py in both of its steps (--networks bagnet17,resnet18)
#   JOBS        runs at a time where no time is measured: in tune and ablation. Two gained nothing on an H200
set -uo pipefail

REPOSITORY=$(cd "$(dirname "$0")/.." && pwd)
PYTHON=${PYTHON:-python3}
WORK=$(mkdir -p "${WORK:=/tmp/gpu_table1}" && cd "$WORK" && pwd)
: "${OUT:?is the folder for the results}"
OUT=$(mkdir -p "$OUT" && cd "$OUT" && pwd)
export BAGNET_DATA=$(mkdir -p "${BAGNET_DATA:=$WORK/data}" && cd "$BAGNET_DATA" && pwd)
WHEELS=$(realpath -m "${WHEELS:-$REPOSITORY/wheels}")
RESUME=${RESUME:+$(realpath "$RESUME")}
OVERRIDES=${OVERRIDES:-data.eval_batch_size=1000}
SPEED=${SPEED:-}
TUNE=${TUNE:-}
JOBS=${JOBS:-1}
DEADLINE=$((SECONDS + ${BUDGET:-1000000}))
RESULTS=$WORK/results
# What results/ lacks first.
ROWS=${ROWS:-bagnet17_adam_15,bagnet33_adadelta_15,bagnet9_adadelta_15,bagnet17_adadelta_15,bagnet33_sgd_15,\
bagnet9_sgd_5,bagnet17_sgd_15,bagnet9_sgd_15,bagnet33_adam_5,bagnet17_adam_5,bagnet17_sgd_5,bagnet33_adam_15,\
bagnet9_adam_15,resnet18_sgd_15}
VARIANTS=${VARIANTS:-"as_it_is
cooperative --inductor triton.cooperative_reductions
cooperative_combo --inductor triton.cooperative_reductions,combo_kernels
combo --inductor combo_kernels
plain trainer.compile=false trainer.cuda_graph=false
graph_alone trainer.compile=false
compile_alone trainer.cuda_graph=false
fused_norm trainer.fused_norm=true
no_search +trainer.benchmark=false
from_host data.device_resident=false
muon optim=muon
batch_400 data.batch_size=400
tuned_pointwise --inductor max_autotune_pointwise
tuned_descent --inductor coordinate_descent_tuning
tuned_all trainer.compile=max-autotune"}
STEPS=(compile smoke data table1 speed modern tune tuned ablation why_sgd seeds tuned_seeds variants shares)

# name: seconds, what it may take
declare -A LIMIT=([compile]=500 [smoke]=400 [data]=300 [speed]=580 [table1]=1200 [modern]=600 [tune]=900 [tuned]=600
                  [ablation]=900 [why_sgd]=900 [seeds]=700 [tuned_seeds]=1000 [variants]=580 [shares]=400)

train() { # SWEEP ARGUMENTS...; once more where a library crashed, which ends all runs of a sweep: it goes on
    local sweep=$1 code
    shift
    for _ in 1 2; do
        code=0
        # shellcheck disable=SC2086
        "$PYTHON" -m bagnet_lightning.train -m sweep="$sweep" "$@" $OVERRIDES || code=$?
        case $code in
            13[24569]) echo "crashed by signal $((code - 128)): $sweep $*" ;; # ILL, ABRT, BUS, FPE, SEGV
            *) break ;;
        esac
    done
    return "$code"
}

keep() { # what is small of all runs
    mkdir -p "$RESULTS/sweeps" multirun_outputs
    (cd multirun_outputs && find . \( -name result.json -o -name 'table.*' -o -name metrics.csv -o -name config.yaml \
        -o -name train.log \) -print0 | tar --null -cf - -T -) | tar -C "$RESULTS/sweeps" -xf -
}

# Label smoothing, padding, crops and the shortcut start as in recipe=modern. The last batch of an epoch is a smaller one.
SMOKE="data=textures data.batch_size=48 data.crop_padding=4 model=bagnet9 model.stem_momentum=0.1 model.pad=1
    model.zero_init=true optim.lr=0.001 scheduler=onecycle label_smoothing=0.1 weight_average=0.9 trainer.max_epochs=2"

compile() { # all that will be trained, without data: torch keeps what it made on disk, for all that comes
    local code=0 recipe network jobs=()
    local -x TORCHINDUCTOR_COMPILE_THREADS=4 # of each of these ten processes
    for recipe in paper modern; do
        for network in model=bagnet33 model=resnet18 model=bagnet9 model=bagnet17; do
            compile_one recipe=$recipe $network &
            jobs+=($!)
        done
        # shellcheck disable=SC2086
        if [ $recipe = paper ]; then compile_one $SMOKE; else compile_one recipe=modern model=resnet18 model.stem=small; fi &
        jobs+=($!)
    done
    for job in "${jobs[@]}"; do wait "$job" || code=1; done
    return $code
}

compile_one() { # ARGUMENTS of train: its augmentation, and its network's forward and backward pass; checks both
    "$PYTHON" "$REPOSITORY/benchmarks/gpu_checks.py" compile "$@"
}

smoke() { # the same losses with a plain step, a compiled and recorded one, and one that was broken off
    # On a GPU "auto" would hide what fails.
    local on=true code=0 forms jobs=()
    "$PYTHON" -c "import torch; raise SystemExit(not torch.cuda.is_available())" || on=auto
    for forms in false $on; do
        # shellcheck disable=SC2086
        train "smoke_$forms" fresh=true $SMOKE optim=adam,muon trainer.compile=$forms trainer.cuda_graph=$forms &
        jobs+=($!)
    done
    # shellcheck disable=SC2086
    stopped smoke_stopped fresh=true $SMOKE optim=muon trainer.compile=$on trainer.cuda_graph=$on || code=1
    # shellcheck disable=SC2086
    train smoke_stopped $SMOKE optim=muon trainer.compile=$on trainer.cuda_graph=$on || code=1
    for job in "${jobs[@]}"; do wait "$job" || code=1; done
    "$PYTHON" "$REPOSITORY/benchmarks/gpu_checks.py" smoke || code=1
    return $code
}

stopped() { # SWEEP ARGUMENTS...: gets SIGTERM after three quarters of its steps, in the midst of an epoch
    local sweep=$1 code=0
    shift
    # shellcheck disable=SC2086
    "$PYTHON" "$REPOSITORY/benchmarks/gpu_checks.py" stop -m sweep="$sweep" "$@" $OVERRIDES || code=$?
    [ $code != 0 ] || echo "a training that was stopped has ended as if it were finished"
    [ $code = 143 ]
}

data() { "$PYTHON" -m bagnet_lightning.prepare; }

# shellcheck disable=SC2086
speed() { train_speed "$RESULTS/speed.json" --profile "$RESULTS/profile" $SPEED; }

variants() { # what a step of BagNet-33 takes in other forms: all compile at the same time but those that time kernels
    local plain="--models bagnet33 --plain-steps 0 ++trainer.limit_train_batches=300 ++trainer.limit_val_batches=1" code=0
    local name settings
    while read -r name settings; do
        # shellcheck disable=SC2086
        [[ $name = tuned_* ]] || train_speed "$WORK/tmp/$name.json" $settings --epochs 1 $plain >/dev/null 2>&1 &
    done <<<"$VARIANTS"
    wait
    while read -r name settings <&3; do
        echo "== $name $settings"
        # shellcheck disable=SC2086
        train_speed "$RESULTS/speed_$name.json" $settings --epochs 3 $plain || code=1
    done 3<<<"$VARIANTS"
    return $code
}

# shellcheck disable=SC2086
train_speed() { # FILE ARGUMENTS...
    local file=$1
    shift
    "$PYTHON" "$REPOSITORY/benchmarks/train_speed.py" "$BAGNET_DATA" --out "$file" "$@" $OVERRIDES
}

table1() {
    local started=$SECONDS
    train table1_paper "table1=$ROWS" || return
    echo "this call took $((SECONDS - started)) s for the rows that were not finished before (target: 600 s for all 14)"
    show table1_paper
}

show() { # SWEEP: how fast each run was, and whether it was compiled and recorded
    "$PYTHON" "$REPOSITORY/benchmarks/gpu_checks.py" show "$1"
}

seeds() { train table1_paper table1=resnet18_sgd_15,bagnet9_adam_15,bagnet17_adam_15,bagnet33_adam_15 seed=1,2; }

why_sgd() {
    train why_sgd model=bagnet9,bagnet33 optim=sgd optim.momentum=0.0,0.9 optim.lr=0.001,0.01,0.1 \
        scheduler.interval=epoch,step trainer.max_epochs=5 || return
    train why_sgd model=bagnet33 optim=sgd optim.lr=0.001,0.01 model.stem_momentum=0.1 trainer.max_epochs=5 || return
    "$PYTHON" "$REPOSITORY/benchmarks/why_sgd.py" multirun_outputs/why_sgd | tee "$RESULTS/why_sgd.md"
}

# shellcheck disable=SC2086
tune() { # short runs on held-out train images: tuned.txt
    "$PYTHON" "$REPOSITORY/benchmarks/tune.py" choose "$RESULTS" --jobs "$JOBS" $TUNE $OVERRIDES
}

# shellcheck disable=SC2086
ablation() { # recipe=modern as tuned, without each of its parts, on the same held-out images: ablation.csv
    "$PYTHON" "$REPOSITORY/benchmarks/tune.py" ablate "$RESULTS" --jobs "$JOBS" $TUNE $OVERRIDES
}

modern() { # its own settings, which were chosen on small held-out parts (results/recipe_subset/)
    local code=0
    train modern recipe=modern model=bagnet17,bagnet9 || code=1
    train modern recipe=modern model=resnet18 model.stem=small || code=1
    train modern recipe=modern model=resnet18,bagnet33 || code=1
    show modern
    return $code
}

tuned() { measure_tuned 0; }

tuned_seeds() { measure_tuned 1,2; }

measure_tuned() { # SEEDS: on val, with the settings that were chosen when it first ran, so that all seeds share them
    local settings code=0
    finished tune || { echo "tune is not done, and val is not for settings that are still open"; return 1; }
    # shellcheck disable=SC2086
    [ -s "$RESULTS/measured.txt" ] ||
        "$PYTHON" "$REPOSITORY/benchmarks/tune.py" show "$RESULTS" $TUNE >"$RESULTS/measured.txt" || return
    while read -r settings <&3; do
        # shellcheck disable=SC2086
        train tuned recipe=modern $settings "seed=$1" || code=1
    done 3<"$RESULTS/measured.txt"
    show tuned
    return $code
}

shares() { # four jobs one after the other, and all at once on the same card; what they compile is there already
    local started jobs code=0
    for together in no yes; do
        started=$SECONDS jobs=()
        for seed in 0 1 2 3; do
            train "shares_$together-$seed" fresh=true model=bagnet33 optim=adam trainer.max_epochs=2 seed=$seed >/dev/null &
            if [ $together = yes ]; then jobs+=($!); else wait $! || code=1; fi
        done
        for job in "${jobs[@]}"; do wait "$job" || code=1; done
        echo "four jobs of two epochs, all at once: $together: $((SECONDS - started)) s"
    done
    return $code
}

pack_results() {
    for step in "${STEPS[@]}"; do
        [ -e "$RESULTS/$step.log" ] && printf '\n== %s (%s)\n' "$step" "$(cat "$RESULTS/$step.state" 2>/dev/null)" &&
            tail -n 40 "$RESULTS/$step.log" | cut -c 1-300
    done >"$OUT/summary.txt"
    # tar's code 1: a file changed while it was read, as the log of another call of this script may
    tar -C "$RESULTS" -czf "$OUT/.results.$$.tar.gz" . || [ $? = 1 ] && mv "$OUT/.results.$$.tar.gz" "$OUT/results.tar.gz"
}

finished() { [ "$(cut -d ' ' -f 1 "$RESULTS/$1.state" 2>/dev/null)" = done ]; } # NAME

step() { # NAME[:SECONDS]: runs it in a process of its own within its limit, unless it is done
    local name=${1%:*} left=$((DEADLINE - SECONDS)) limit started=$SECONDS code=0
    [ "$1" = "$name" ] && limit=$((LIMIT[$name] * ${PATIENCE:-1})) || limit=${1#*:}
    finished "$name" && return 0
    if [ $left -lt 30 ]; then
        echo "no time left for $name"
        return 1
    fi
    echo "== $name"
    timeout --signal=TERM --kill-after=30 $((left - 15 < limit ? left - 15 : limit)) \
        "$BASH" "$REPOSITORY/benchmarks/gpu_table1.sh" --inside "$name" >>"$RESULTS/$name.log" 2>&1 &
    running=$!
    [ -z "$ending" ] || kill -TERM "$running"
    wait "$running" || code=$?
    while kill -0 "$running" 2>/dev/null; do # a signal has ended the wait
        code=0
        wait "$running" || code=$?
    done
    echo "$([ $code = 0 ] && echo done || echo "failed, exit code $code"), $((SECONDS - started)) s" |
        sed 's/^done,/done /' >"$RESULTS/$name.state"
    cat "$RESULTS/$name.state"
    tail -n 5 "$RESULTS/$name.log"
    keep # here and not in the step, which may have been killed
    pack_results
    return $code
}

mkdir -p "$RESULTS" "$WORK/tmp"
export TMPDIR=$WORK/tmp # checkpoints that are timed go where runs go
# Compiled code does not: it cannot be loaded from a disk that is mounted noexec, as those in memory often are.
export TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-/tmp/bagnet_lightning_inductor}
export TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-/tmp/bagnet_lightning_triton}
export PYTHONPATH=$WORK/shadow:$WORK/site:$REPOSITORY${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 OUT WORK
export PYTHONFAULTHANDLER=1 # where a process crashed
cd "$WORK" || exit 1
if [ "${1:-}" = --inside ]; then
    trap 'wait; exit 143' TERM # once the training has saved itself
    "$2"
    exit
fi
if [ -n "$RESUME" ] && [ ! -e resumed ]; then
    tar -C "$RESULTS" -xzf "$RESUME"
    rm -f "$RESULTS"/{compile,data}.state # what these left is not in the file
    mkdir -p multirun_outputs && cp -rn "$RESULTS/sweeps/." multirun_outputs/ # finished runs are skipped
    touch resumed
fi
if [ -d "$WHEELS" ] && [ ! -d "$WORK/site" ]; then
    # Whole or not at all: another call of this script may start at the same time.
    "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --target "$WORK/site.$$" "$WHEELS"/*.whl || exit 1
    mv -T "$WORK/site.$$" "$WORK/site" 2>/dev/null || rm -r "$WORK/site.$$"
fi
# With transformers on the machine, torchmetrics would import it, and so would every process that imports Lightning: for
# seconds. Of this version it does not.
mkdir -p "$WORK/shadow/transformers-0.dist-info"
printf 'Metadata-Version: 2.1\nName: transformers\nVersion: 0\n' >"$WORK/shadow/transformers-0.dist-info/METADATA"
failed=() ending='' running=''
# timeout passes it on; without this a step would go on alone, and hold its runs' folders
trap 'ending=yes; [ -z "$running" ] || kill -TERM "$running" 2>/dev/null' TERM INT HUP
for name in "${@:-${STEPS[@]}}"; do
    [ -z "$ending" ] || { failed+=("$name") && continue; }
    step "$name" || failed+=("$name")
done
[ ${#failed[@]} = 0 ] && exit 0
echo "not done: ${failed[*]}"
exit 1
