. .gpu/up; export LONGSEQ_PYTHON=python3
nvidia-smi --query-gpu=name --format=csv,noheader
L="node dist/cli/index.js"
b() { $L bench --device cuda --dtype bfloat16 --implementation sm80 --seconds 0.4 "$@" 2>&1 | tee -a $OUT/bench.txt | grep -E "^ *[0-9]|forward|backward|rror" | cut -c1-150; }
echo "128k cool"; b --heads 16 --head-dim 128 --seq-len 128k --pass forward --peer torch-flash
node scripts/test-gpu.mjs --jobs 8 many-heads attention > $OUT/tests.txt 2>&1; tail -25 $OUT/tests.txt
for d in bfloat16 float16; do $L verify test/vectors --device cuda --implementation sm80 --dtype $d 2>&1 | tail -2; done
for c in "" --no-causal; do for x in "16 128" "32 64" "21 96" "25 80"; do set -- $x; echo "D $2 $c"; b --batch 2 --heads $1 --head-dim $2 --seq-len 8k $c --pass forward --peer torch-flash; done; done
echo documents; b --heads 16 --head-dim 128 --seq-len 16k --mask documents --pass forward
echo window; b --heads 16 --head-dim 128 --seq-len 16k --window 1024 --pass forward
echo window2k; b --heads 16 --head-dim 128 --seq-len 16k --window 2048 --pass forward
echo blocks; b --heads 16 --head-dim 128 --seq-len 16k --mask blocks --pass forward
echo decode; b --heads 32 --kv-heads 8 --head-dim 128 --seq-len 4k --pass forward
echo small; b --heads 16 --head-dim 128 --seq-len 1k,2k,4k,16k,32k --pass forward --peer torch-flash
