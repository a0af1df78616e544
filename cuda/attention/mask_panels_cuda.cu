#include <algorithm>
#include <cstring>
#include <vector>

#include "attention/mask_panels.h"
#include "core/division.h"

namespace longseq {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kTileBytes = sizeof(BitTile);
constexpr int64_t kPieceTiles = 2048;  // 4 MiB of pinned memory, filled while the pieces before are copied
constexpr int kPieces = 3;
constexpr int64_t kTilesTogether = 64;  // that a thread of the pool copies

/** Copies panels to two buffers in turn, on a stream of its own. */
class PanelCopies {
 public:
  PanelCopies(const Cuda& cuda, const HostTiles& tiles, int64_t most)
      : cuda_(cuda), copying_(cuda), tiles_(tiles) {
    cudaStream_t stream;
    cuda_check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "a stream");
    copying_.stream = {stream, [](cudaStream_t freed) { cudaStreamDestroy(freed); }};
    for (Buffer& buffer : buffers_) {
      buffer.memory = allocate(cuda, static_cast<size_t>(std::max<int64_t>(most, 1) * kTileBytes));
    }
    wait(copying_, record(cuda));  // the memory is there in the order of the queue
  }
  /** What is on its way comes from and goes to memory that is about to be freed. */
  ~PanelCopies() { cudaStreamSynchronize(copying_.stream.get()); }
  PanelCopies(const PanelCopies&) = delete;
  PanelCopies& operator=(const PanelCopies&) = delete;

  /** Begins to copy tiles [first, last); what the queue is given next finds them there. */
  uint32_t* load(int64_t first, int64_t last) {
    Buffer& buffer = buffers_[turn_];
    if (buffer.read) wait(copying_, buffer.read);
    for (int64_t at = first; at < last; at += kPieceTiles) {
      load_piece(at, std::min(at + kPieceTiles, last),
                 static_cast<char*>(buffer.memory.data) + (at - first) * kTileBytes);
    }
    wait(cuda_, record(copying_));
    return static_cast<uint32_t*>(buffer.memory.data);
  }
  /** What reads the tiles loaded last has been launched. */
  void launched() {
    buffers_[turn_].read = record(cuda_);
    turn_ = 1 - turn_;
  }

 private:
  struct Buffer {
    Memory memory;
    Event read;
  };
  struct Piece {
    Memory memory;
    Event copied;
  };

  static void wait(const Cuda& waiting, const Event& event) {
    cuda_check(cudaStreamWaitEvent(waiting.stream.get(), event.get()), "waiting for an event");
  }

  void load_piece(int64_t first, int64_t last, char* to) {
    Piece& piece = pieces_[next_piece_];
    next_piece_ = (next_piece_ + 1) % kPieces;
    if (piece.copied) {
      wait_for(piece.copied);
    } else {
      piece.memory = pinned_memory(static_cast<size_t>(kPieceTiles * kTileBytes));
    }
    const auto& tiles = tiles_.tiles;
    auto* const pinned = static_cast<char*>(piece.memory.data);
    parallel_for(ceil_div(last - first, kTilesTogether), [&](int64_t task) {
      const int64_t begin = first + task * kTilesTogether, end = std::min(begin + kTilesTogether, last);
      for (int64_t tile = begin; tile < end; tile++) {
        std::memcpy(pinned + (tile - first) * kTileBytes, tiles[static_cast<size_t>(tile)], kTileBytes);
      }
    });
    cuda_check(cudaMemcpyAsync(to, pinned, static_cast<size_t>((last - first) * kTileBytes),
                               cudaMemcpyHostToDevice, copying_.stream.get()),
               "a copy to the GPU");
    piece.copied = record(copying_);
  }

  const Cuda& cuda_;
  Cuda copying_;  // the same, with another stream
  const HostTiles& tiles_;
  Buffer buffers_[2];
  Piece pieces_[kPieces];
  int turn_ = 0, next_piece_ = 0;
};

/** Of as many neighbours as `most` tiles go, but at least of one. */
std::vector<MaskPanel> panels_of(const HostTiles& tiles, int64_t most) {
  std::vector<MaskPanel> panels;
  const std::vector<int64_t>& first = tiles.first;
  const auto blocks = static_cast<int64_t>(first.size()) - 1;
  for (int64_t block = 0; block < blocks; block++) {
    const int64_t end = first[static_cast<size_t>(block) + 1];
    if (panels.empty() || end - first[static_cast<size_t>(panels.back().begin)] > most) {
      panels.push_back({block, block, nullptr});
    }
    panels.back().end = block + 1;
  }
  return panels;
}

/** Of keys [first, first + keys) what queries see of all. */
__global__ void intervals_of_keys_kernel(GpuIntervals visible, int first, int keys, int queries,
                                         int32_t* begin, int32_t* end) {
  const int64_t query = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (query >= queries) return;
  begin[query] = min(max(visible.begin[query] - first, 0), keys);
  end[query] = min(max(visible.end[query] - first, 0), keys);
}

void advance(GpuRows& rows, int64_t first, int64_t element_bytes) {
  if (rows.data != nullptr) rows.data = static_cast<char*>(rows.data) + first * rows.row * element_bytes;
}

}  // namespace

void for_each_panel(const Cuda& cuda, const GpuMaskCopy& mask, MaskAxis axis, bool transposed,
                    FunctionRef<void(const MaskPanel&)> launch) {
  const HostTiles& tiles = axis == MaskAxis::Rows ? mask.of_rows : mask.of_columns;
  const auto first_tile = [&](int64_t block) { return tiles.first[static_cast<size_t>(block)]; };
  int64_t most = 0;
  const std::vector<MaskPanel> panels =
      panels_of(tiles, mask_budget(cuda.gpu->memory_bytes) / 2 / kTileBytes);
  for (const MaskPanel& panel : panels)
    most = std::max(most, first_tile(panel.end) - first_tile(panel.begin));
  PanelCopies copies(cuda, tiles, most);
  for (MaskPanel panel : panels) {
    const int64_t first = first_tile(panel.begin), last = first_tile(panel.end);
    uint32_t* const loaded = copies.load(first, last);
    if (transposed) transpose_tiles(cuda, loaded, nullptr, last - first, loaded);
    panel.tiles = loaded - first * (kTileBytes / static_cast<int64_t>(sizeof(uint32_t)));
    launch(panel);
    copies.launched();
  }
}

ForwardSm80 queries_of(const MaskPanel& panel, DType dtype, ForwardSm80 op) {
  const int64_t first = panel.first(), bytes = size_of(dtype);
  op.queries = static_cast<int32_t>(panel.rows_of(op.queries));
  advance(op.q, first, bytes);
  advance(op.out, first, op.out_float32 ? 4 : bytes);
  advance(op.before, first, 4);
  if (op.log_sum_exp.data != nullptr) op.log_sum_exp.data += first;
  op.visible.shift += static_cast<int32_t>(first);
  if (op.visible.begin != nullptr) {
    op.visible.begin += first;
    op.visible.end += first;
  }
  if (op.score.query_positions != nullptr) op.score.query_positions += first;
  op.mask.first_run += panel.begin;
  op.mask.tiles = panel.tiles;
  return op;
}

BackwardSm80 queries_of(const MaskPanel& panel, DType dtype, BackwardSm80 op) {
  const int64_t first = panel.first(), bytes = size_of(dtype);
  op.forward = queries_of(panel, dtype, op.forward);
  advance(op.dout, first, bytes);
  advance(op.dq, first, op.dq_float32 ? 4 : bytes);
  op.statistics += first;
  return op;
}

BackwardSm80 keys_of(const Cuda& cuda, const MaskPanel& panel, DType dtype, BackwardSm80 op,
                     int32_t* scratch) {
  const int64_t first = panel.first(), bytes = size_of(dtype);
  ForwardSm80& forward = op.forward;
  forward.keys = static_cast<int32_t>(panel.rows_of(forward.keys));
  advance(forward.k, first, bytes);
  advance(forward.v, first, bytes);
  advance(op.dk, first, op.dk_float32 ? 4 : bytes);
  advance(op.dv, first, op.dv_float32 ? 4 : bytes);
  if (forward.visible.begin != nullptr) {
    const dim3 blocks(static_cast<unsigned>(ceil_div(forward.queries, kThreads)));
    int32_t *const begin = scratch, *const end = scratch + forward.queries;
    launch<intervals_of_keys_kernel>(cuda, blocks, kThreads, 0, forward.visible, static_cast<int>(first),
                                     forward.keys, forward.queries, begin, end);
    forward.visible.begin = begin;
    forward.visible.end = end;
  } else {
    forward.visible.shift -= static_cast<int32_t>(first);
  }
  if (forward.score.key_positions != nullptr) forward.score.key_positions += first;
  for (GpuMask* const mask : {&op.mask_columns, &op.mask_transposed}) {
    if (mask->first_run == nullptr) continue;
    mask->first_run += panel.begin;
    mask->tiles = panel.tiles;
  }
  forward.mask.tiles = panel.tiles;
  op.first_key_block = static_cast<int32_t>(panel.begin);
  return op;
}

}  // namespace longseq
