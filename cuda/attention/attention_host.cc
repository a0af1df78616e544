// Attention on the CPU engine: how the work is cut into tasks, which memory they use, in which order they
// run. The cuts depend on shapes and masks alone, so results are the same bits at any thread count.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "attention/attention.h"
#include "attention/tiles.h"
#include "attention/visibility.h"
#include "core/thread_pool.h"

namespace longseq {
namespace {

/** Heads are worked on together as long as what is packed or summed for them stays within this. */
constexpr int64_t kPackedBudget = int64_t{128} << 20, kSumsBudget = int64_t{256} << 20;
/** Fewer tasks than this may leave cores idle: then the keys of each are split, in parts of at least
 * kSplitKeys. */
constexpr int64_t kFewTasks = 64, kSplitKeys = 1024;
/** Below this many multiply-adds, waking the pool costs more than it saves. */
constexpr double kSmall = 2e6;

HeadRows rows_of(const Tensor& x, int64_t b, int64_t h, bool adds = false) {
  if (!x) return {nullptr, 0, DType::Float32};
  return {x.data<char>() + (b * x.stride(0) + h * x.stride(2)) * size_of(x.dtype), x.stride(1), x.dtype,
          adds};
}

float* statistics_of(const Tensor& x, int64_t b, int64_t h) {
  return x ? x.data<float>() + b * x.stride(0) + h * x.stride(1) : nullptr;
}

/** Of the operands' dtype. In the backward pass that is dout's: it may be float32 where q is not. */
bool multiplies_in_bfloat16(DType dtype) {
  return dtype == DType::BFloat16 && instruction_set() == InstructionSet::Avx512Bf16;
}

void for_each_task(bool small, int64_t count, FunctionRef<void(int64_t, int)> body) {
  if (!small) return parallel_for(count, body);
  for (int64_t task = 0; task < count; task++) body(task, 0);
}

/** What both directions need to know of a call. */
struct Call {
  explicit Call(const AttentionForward& op)
      : op(op),
        use(op.q.device()->memory()),
        batch(op.q.size(0)),
        queries(op.q.size(1)),
        keys(op.k.size(1)),
        heads(op.q.size(2)),
        key_heads(op.k.size(2)),
        head_dim(op.q.size(3)),
        group(key_heads ? heads / key_heads : 0),
        visibility(*op.visibility, queries, keys, use),
        small(static_cast<double>(batch * heads * queries) * static_cast<double>(keys * head_dim) < kSmall) {
    if (op.score.alibi_slopes) {
      query_positions = positions_of_queries(*op.visibility, queries, use);
      key_positions = positions_of_keys(*op.visibility, keys, use);
    }
  }
  VisibleKeys visible() const { return {visibility.begin(), visibility.end(), visibility.mask()}; }
  HeadScore score(int64_t head) const {
    const bool biased = static_cast<bool>(op.score.alibi_slopes);
    return {op.score.scale, op.score.softcap, biased ? op.score.alibi_slopes.data<float>()[head] : 0,
            static_cast<const int32_t*>(query_positions.data()),
            static_cast<const int32_t*>(key_positions.data())};
  }
  HostBlock scratch(int64_t bytes) const {
    return HostBlock(static_cast<size_t>(bytes * (small ? 1 : thread_count().threads)), use);
  }

  const AttentionForward& op;
  std::shared_ptr<MemoryUse> use;
  int64_t batch, queries, keys, heads, key_heads, head_dim, group;
  Visibility visibility;
  bool small;
  HostBlock query_positions, key_positions;
};

/** A part of the work of any head: some queries, some of their keys. */
struct Cut {
  int64_t first_query, last_query, first_key, last_key;
  int64_t part;  // which of its queries' partial results this is; 0 where there is only one
  int64_t cost() const { return (last_query - first_query) * (last_key - first_key); }
};

struct Cuts {
  std::vector<Cut> cuts;
  int64_t parts = 1;
};

Cuts cut_forward(const Call& call) {
  Cuts out;
  // One tile where it holds all; else equal ones, so that the last is not a sliver.
  const int64_t tiles = std::max<int64_t>(1, ceil_div(call.queries, kForwardQueries));
  const int64_t tile = round_up(ceil_div(call.queries, tiles), kMostTileRows);
  const int64_t tasks = tiles * call.batch * call.heads;
  int64_t part_keys = call.keys;
  if (tasks < kFewTasks && call.keys >= 2 * kSplitKeys) {
    const int64_t wanted = ceil_div(kFewTasks, tasks);
    part_keys = std::max(kSplitKeys, round_up(ceil_div(call.keys, wanted), kSplitKeys / 4));
    out.parts = ceil_div(call.keys, part_keys);
  }
  for (int64_t first = 0; first < call.queries; first += tile) {
    const int64_t last = std::min(first + tile, call.queries);
    const Interval hull = call.visibility.key_hull(first, last - 1);
    for (int64_t part = 0; part < out.parts; part++) {
      const int64_t begin = std::max<int64_t>(hull.begin / kPanel * kPanel, part * part_keys);
      const int64_t end = std::min<int64_t>(hull.end, (part + 1) * part_keys);
      // Empty parts run too: they write the identity.
      out.cuts.push_back({first, last, begin, std::max(begin, end), part});
    }
  }
  std::stable_sort(out.cuts.begin(), out.cuts.end(),
                   [](const Cut& a, const Cut& b) { return a.cost() > b.cost(); });
  return out;
}

/** One row's parts, weighted by exp(logSumExp), to its whole: always summed in the parts' order. */
template <class Part>
float merge_row(int64_t parts, Part part, int64_t head_dim, float* out) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  float most = -kInfinity, sum = 0;
  for (int64_t i = 0; i < parts; i++) {
    const float log_sum_exp = part(i, nullptr);
    most = std::isnan(log_sum_exp) || log_sum_exp > most ? log_sum_exp : most;
  }
  std::fill(out, out + head_dim, 0.0f);
  if (most == -kInfinity) return most;
  float row[kLargestHeadDim];
  for (int64_t i = 0; i < parts; i++) {
    const float weight = std::exp(part(i, row) - most);
    if (weight == 0) continue;
    sum += weight;
    for (int64_t d = 0; d < head_dim; d++) out[d] += weight * row[d];
  }
  for (int64_t d = 0; d < head_dim; d++) out[d] /= sum;
  return most + std::log(sum);
}

template <class T>
void write(T* y, const float* x, int64_t count) {
  for (int64_t d = 0; d < count; d++) y[d] = from_float<T>(x[d]);
}

void write(const HeadRows& rows, int64_t row, const float* x, int64_t count) {
  visit_float(rows.dtype,
              [&]<class T>(T) { write(reinterpret_cast<T*>(rows.data) + row * rows.stride, x, count); });
}

/** What the backward pass has of each query of some heads: delta, and sums of dq. */
class QueryRows {
 public:
  /** Of a head, with room behind its last query for the rows of a tile. */
  static int64_t sums_of(int64_t queries, int64_t head_dim) {
    return (round_up(queries, kBackwardQueries) + kMostTileRows) * round_up(head_dim, kWidestTile);
  }
  QueryRows(void* dq, void* delta, int64_t queries, int64_t head_dim, int64_t first_head)
      : dq_(static_cast<float*>(dq)),
        delta_(static_cast<float*>(delta)),
        queries_(queries),
        sums_(sums_of(queries, head_dim)),
        first_head_(first_head) {}
  /** From one of the queries on. */
  QueryRows(const QuerySums& sums, int64_t head_dim, int64_t first_query = 0)
      : QueryRows(sums.dq.data, sums.statistics.data, sums.queries, head_dim, 0) {
    check(queries_ >= 0, Code::OutOfMemory, "attention: there was no memory for the sums of dq");
    dq_ += first_query * round_up(head_dim, kWidestTile);
    delta_ += first_query;
  }
  float* dq(int64_t head) const { return dq_ + head * sums_; }
  float* delta(int64_t head) const { return delta_ + head * queries_; }
  int64_t sums() const { return sums_; }
  /** Batch entry and head. */
  std::pair<int64_t, int64_t> place(int64_t head, int64_t heads) const {
    return {(first_head_ + head) / heads, (first_head_ + head) % heads};
  }

 private:
  float *dq_, *delta_;
  int64_t queries_, sums_, first_head_;
};

constexpr int64_t kRowsATask = 1024;

bool is_small(const Tensor& rows) { return static_cast<double>(rows.elements()) < kSmall; }

/** delta, and sums of zero. */
void begin_rows(const Cpu& cpu, const AttentionBackward& op, const QueryRows& rows, int64_t heads,
                bool small) {
  const Tensor& q = op.forward.q;
  const int64_t queries = q.size(1), head_dim = q.size(3), width = round_up(head_dim, kWidestTile);
  const int64_t chunks = ceil_div(queries, kRowsATask);
  for_each_task(small, heads * chunks, [&](int64_t task, int) {
    const int64_t head = task / chunks, first = task % chunks * kRowsATask,
                  last = std::min(first + kRowsATask, queries);
    const auto [b, h] = rows.place(head, q.size(2));
    run(cpu,
        DeltaTask{rows_of(op.forward.out, b, h), rows_of(op.dout, b, h), statistics_of(op.dlog_sum_exp, b, h),
                  rows.delta(head), first, last, static_cast<int>(head_dim)});
    const int64_t end = last == queries ? rows.sums() : last * width;
    std::memset(rows.dq(head) + first * width, 0, static_cast<size_t>(end - first * width) * 4);
  });
}

/** dq from the sums. */
void finish_rows(const Cpu& cpu, const AttentionBackward& op, const QueryRows& rows, int64_t heads,
                 bool small) {
  const Tensor& q = op.forward.q;
  const int64_t chunks = ceil_div(q.size(1), kRowsATask);
  for_each_task(small, heads * chunks, [&](int64_t task, int) {
    const int64_t head = task / chunks, first = task % chunks * kRowsATask;
    const auto [b, h] = rows.place(head, q.size(2));
    run(cpu, WriteTask{rows.dq(head), op.forward.score.scale, rows_of(op.dq, b, h, op.adds_to_dq), first,
                       std::min(first + kRowsATask, q.size(1)), static_cast<int>(q.size(3))});
  });
}

}  // namespace

int64_t forward_scratch_bytes(int64_t head_dim) {
  const int64_t columns = round_up(head_dim, kWidestTile);
  return kForwardQueries * (head_dim + columns + 16 + 1) * 4 + kMostTileRows * 512 * 8 + 4096;
}

int64_t backward_scratch_bytes(int64_t head_dim) {
  const int64_t columns = round_up(head_dim, kWidestTile);
  return (kBackwardKeys * (2 * head_dim + 3 * columns) + kBackwardQueries * (2 * head_dim + 2 * columns) +
          3 * kBackwardKeys * kBackwardQueries + kBackwardKeys * 3 * kMostTileRows) *
             4 +
         4096;
}

void run(const Cpu& cpu, const AttentionForward& op) {
  const Call call(op);
  if (call.batch * call.heads * call.queries == 0) return;
  const auto [cuts, parts] = cut_forward(call);
  const auto cut_count = static_cast<int64_t>(cuts.size());
  const int64_t packed = packed_bytes(call.keys, call.head_dim);
  const int64_t pairs = call.batch * call.key_heads;  // of a batch entry and a key head
  const int64_t together = std::clamp<int64_t>(kPackedBudget / std::max<int64_t>(1, 2 * packed), 1, pairs);
  const HostBlock memory(static_cast<size_t>(2 * packed * together), call.use);
  const int64_t scratch_bytes = round_up(forward_scratch_bytes(call.head_dim), 4096);
  const HostBlock scratch = call.scratch(scratch_bytes);
  // Partial results, [pair in hand][head of the group][part][query]: out (D values), logSumExp.
  const int64_t rows = together * call.group * parts * call.queries;
  const HostBlock partial(parts > 1 ? static_cast<size_t>(rows * (call.head_dim + 1)) * 4 : 0, call.use);
  float* const partial_out = static_cast<float*>(partial.data());
  float* const partial_log_sum_exp = partial_out + rows * call.head_dim;
  // Keys that nobody sees need not be packed.
  const Interval seen = call.visibility.key_hull(0, call.queries - 1);
  const int64_t first_key = seen.begin / kPanel * kPanel, last_key = std::max<int64_t>(seen.end, first_key);

  for (int64_t first_pair = 0; first_pair < pairs; first_pair += together) {
    const int64_t count = std::min(together, pairs - first_pair);
    const auto packed_of = [&](int64_t pair) {
      return static_cast<char*>(memory.data()) + pair * 2 * packed;
    };
    constexpr int64_t kPackKeys = 8 * kPanel;
    const int64_t chunks = ceil_div(last_key - first_key, kPackKeys);
    for_each_task(call.small, count * chunks, [&](int64_t task, int) {
      const int64_t pair = task / chunks, b = (first_pair + pair) / call.key_heads,
                    h = (first_pair + pair) % call.key_heads;
      const int64_t first = first_key + task % chunks * kPackKeys;
      run(cpu, PackKeysTask{rows_of(op.k, b, h), rows_of(op.v, b, h), call.keys, first,
                            std::min(first + kPackKeys, round_up(last_key, kPanel)),
                            static_cast<int>(call.head_dim), multiplies_in_bfloat16(op.q.dtype),
                            packed_of(pair), packed_of(pair) + packed});
    });
    const int64_t heads = count * call.group;
    for_each_task(call.small, heads * cut_count, [&](int64_t task, int slot) {
      const Cut& cut = cuts[static_cast<size_t>(task / heads)];
      const int64_t pair = task % heads / call.group, b = (first_pair + pair) / call.key_heads;
      const int64_t h = (first_pair + pair) % call.key_heads * call.group + task % call.group;
      ForwardTask forward{rows_of(op.q, b, h),
                          rows_of(op.out, b, h),
                          statistics_of(op.log_sum_exp, b, h),
                          packed_of(pair),
                          packed_of(pair) + packed,
                          call.visible(),
                          call.score(h),
                          call.keys,
                          cut.first_query,
                          cut.last_query,
                          cut.first_key,
                          cut.last_key,
                          static_cast<int>(call.head_dim),
                          multiplies_in_bfloat16(op.q.dtype),
                          static_cast<char*>(scratch.data()) + slot * scratch_bytes};
      if (parts > 1) {
        const int64_t row = (task % heads * parts + cut.part) * call.queries;
        forward.out = {reinterpret_cast<char*>(partial_out + row * call.head_dim), call.head_dim,
                       DType::Float32};
        forward.log_sum_exp = partial_log_sum_exp + row;
      }
      run(cpu, forward);
    });
    if (parts == 1) continue;
    for_each_task(call.small, heads * call.queries, [&, parts = parts](int64_t task, int) {
      const int64_t head = task / call.queries, i = task % call.queries, pair = head / call.group;
      const int64_t b = (first_pair + pair) / call.key_heads;
      const int64_t h = (first_pair + pair) % call.key_heads * call.group + head % call.group;
      float row[kLargestHeadDim];
      const auto part = [&](int64_t p, float* out) {
        const int64_t at = (head * parts + p) * call.queries + i;
        if (out) std::copy_n(partial_out + at * call.head_dim, call.head_dim, out);
        return partial_log_sum_exp[at];
      };
      statistics_of(op.log_sum_exp, b, h)[i] = merge_row(parts, part, call.head_dim, row);
      write(rows_of(op.out, b, h), i, row, call.head_dim);
    });
  }
}

void run(const Cpu& cpu, const AttentionBackward& op) {
  const AttentionForward& forward = op.forward;
  const Call call(forward);
  const int64_t pairs = call.batch * call.key_heads, head_dim = call.head_dim;
  if (pairs == 0) return;
  const int64_t tiles = ceil_div(call.queries, kBackwardQueries), blocks = ceil_div(call.keys, kBackwardKeys);
  // Which blocks of keys each tile of queries sees, and the tiles that see each block.
  std::vector<Interval> tile_blocks(static_cast<size_t>(tiles)), block_tiles(static_cast<size_t>(blocks));
  for (int64_t tile = 0; tile < tiles; tile++) {
    const Interval hull = call.visibility.key_hull(tile * kBackwardQueries,
                                                   std::min((tile + 1) * kBackwardQueries, call.queries) - 1);
    if (hull.empty()) continue;
    const auto seen =
        tile_blocks[static_cast<size_t>(tile)] = {static_cast<int32_t>(hull.begin / kBackwardKeys),
                                                  static_cast<int32_t>(ceil_div(hull.end, kBackwardKeys))};
    for (int32_t block = seen.begin; block < seen.end; block++) {
      Interval& seeing = block_tiles[static_cast<size_t>(block)];
      if (seeing.empty()) seeing.begin = static_cast<int32_t>(tile);
      seeing.end = static_cast<int32_t>(tile + 1);
    }
  }
  const int64_t sums = QueryRows::sums_of(call.queries, head_dim);
  const int64_t together =
      op.sums ? pairs
              : std::clamp<int64_t>(kSumsBudget / std::max<int64_t>(1, sums * 4 * call.group), 1, pairs);
  const int64_t most_heads = together * call.group, own_heads = op.sums ? 0 : most_heads;
  const HostBlock dq(static_cast<size_t>(own_heads * sums) * 4, call.use);
  const HostBlock delta(static_cast<size_t>(own_heads * call.queries) * 4, call.use);
  const HostBlock progress(static_cast<size_t>(most_heads * tiles) * sizeof(std::atomic<int32_t>), call.use);
  const int64_t scratch_bytes = round_up(backward_scratch_bytes(head_dim), 4096);
  const HostBlock scratch = call.scratch(scratch_bytes);
  std::vector<BackwardHead> in_hand(static_cast<size_t>(most_heads));

  for (int64_t first_pair = 0; first_pair < pairs; first_pair += together) {
    const int64_t count = std::min(together, pairs - first_pair), heads = count * call.group;
    const QueryRows rows =
        op.sums ? QueryRows(*op.sums, head_dim, op.first_query)
                : QueryRows(dq.data(), delta.data(), call.queries, head_dim, first_pair * call.group);
    for (int64_t head = 0; head < heads; head++) {
      const auto [b, h] = rows.place(head, call.heads);
      in_hand[static_cast<size_t>(head)] = {
          rows_of(forward.q, b, h),
          rows_of(op.dout, b, h),
          statistics_of(forward.log_sum_exp, b, h),
          rows.delta(head),
          rows.dq(head),
          static_cast<std::atomic<int32_t>*>(progress.data()) + head * tiles,
          call.score(h)};
    }
    std::memset(progress.data(), 0, static_cast<size_t>(heads * tiles) * sizeof(std::atomic<int32_t>));
    if (!op.sums) begin_rows(cpu, op, rows, heads, call.small);
    // Blocks outermost: the heads' turns at a tile of queries then seldom meet.
    for_each_task(call.small, blocks * count, [&](int64_t task, int slot) {
      const int64_t block = task / count, pair = task % count;
      const int64_t b = (first_pair + pair) / call.key_heads, h = (first_pair + pair) % call.key_heads;
      const Interval seeing = block_tiles[static_cast<size_t>(block)];
      run(cpu,
          BackwardTask{in_hand.data() + pair * call.group, static_cast<int>(call.group),
                       rows_of(forward.k, b, h), rows_of(forward.v, b, h),
                       rows_of(op.dk, b, h, op.adds_to_dk), rows_of(op.dv, b, h, op.adds_to_dv),
                       call.visible(), tile_blocks.data(), call.queries, call.keys, block * kBackwardKeys,
                       std::min((block + 1) * kBackwardKeys, call.keys), seeing.begin, seeing.end,
                       static_cast<int>(head_dim), multiplies_in_bfloat16(op.dout.dtype),
                       static_cast<char*>(scratch.data()) + slot * scratch_bytes});
    });
    if (!op.sums) finish_rows(cpu, op, rows, heads, call.small);
  }
}

void run(const Cpu& cpu, const BeginQuerySums& begin) {
  const Tensor& q = begin.op.forward.q;
  QuerySums& sums = *begin.op.sums;
  const int64_t heads = q.size(0) * q.size(2), queries = q.size(1);
  sums.statistics = allocate(cpu, static_cast<size_t>(heads * queries) * 4);
  sums.dq = allocate(cpu, static_cast<size_t>(heads * QueryRows::sums_of(queries, q.size(3))) * 4);
  sums.queries = queries;
  begin_rows(cpu, begin.op, QueryRows(sums, q.size(3)), heads, is_small(q));
}

void run(const Cpu& cpu, const FinishQuerySums& finish) {
  const Tensor& q = finish.op.forward.q;
  finish_rows(cpu, finish.op, QueryRows(*finish.op.sums, q.size(3)), q.size(0) * q.size(2), is_small(q));
}

void run(const Cpu&, const AttentionMerge& op) {
  const int64_t queries = op.out.size(1), heads = op.out.size(2), head_dim = op.out.size(3);
  const auto parts = static_cast<int64_t>(op.outs.size());
  parallel_for(op.out.size(0) * heads * ceil_div(queries, 64), [&](int64_t task) {
    const int64_t tiles = ceil_div(queries, 64), b = task / tiles / heads, h = task / tiles % heads;
    float row[kLargestHeadDim];
    for (int64_t i = task % tiles * 64; i < std::min(queries, (task % tiles + 1) * 64); i++) {
      const auto part = [&](int64_t p, float* out) {
        const auto at = static_cast<size_t>(p);
        const HeadRows rows = rows_of(op.outs[at], b, h);
        if (out) {
          visit_float(rows.dtype, [&]<class T>(T) {
            std::copy_n(reinterpret_cast<const T*>(rows.data) + i * rows.stride, head_dim, out);
          });
        }
        return statistics_of(op.log_sum_exps[at], b, h)[i];
      };
      statistics_of(op.log_sum_exp, b, h)[i] = merge_row(parts, part, head_dim, row);
      write(rows_of(op.out, b, h), i, row, head_dim);
    }
  });
}

}  // namespace longseq
