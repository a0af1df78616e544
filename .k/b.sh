. .gpu/up; export LONGSEQ_PYTHON=python3
nvidia-smi --query-gpu=name --format=csv,noheader
L="node dist/cli/index.js"
b() { $L bench --device cuda --dtype bfloat16 --implementation sm80 --seconds 0.3 "$@" 2>&1 | tee -a $OUT/bench.txt | grep -E "^ *[0-9]|forward|backward|rror" | cut -c1-150; }
node scripts/test-gpu.mjs --jobs 8 many-heads > $OUT/tests.txt 2>&1; tail -8 $OUT/tests.txt
small="--heads 16 --head-dim 128 --pass forward"
for s in "" 101376; do [ -n "$s" ] && export LONGSEQ_SHARED_BYTES=$s; echo "shared $s"
b $small --batch 8 --seq-len 2k; b $small --batch 4 --seq-len 4k
b $small --seq-len 16k --mask documents; for w in 1024 2048 4096; do b $small --seq-len 16k --window $w; done
b --heads 21 --head-dim 96 --pass forward --seq-len 16k --mask documents;  b --heads 21 --head-dim 96 --pass forward --seq-len 16k --window 1024
done; unset LONGSEQ_SHARED_BYTES
for x in 0 1 2 4 8; do [ $x -gt 0 ] && export LONGSEQ_X=$x; echo "splits $x"; b $small --seq-len 1k,2k; b --heads 8 --head-dim 128 --pass forward --seq-len 1k,2k;  b --heads 2 --head-dim 128 --pass forward --seq-len 1k,4k;done; unset LONGSEQ_X
echo layer; b --what layer --seq-len 16k,64k --peer torch-flash
for t in ring zigzag; do echo $t; b --heads 16 --head-dim 128 --seq-len 64k --ranks 8 --sequence-parallel $t; done; echo one;  b --heads 16 --head-dim 128 --seq-len 64k
