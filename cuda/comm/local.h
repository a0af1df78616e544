#pragma once
// Where the ranks of one process meet.
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "comm/communicator.h"

namespace longseq {

class LocalGroup {
 public:
  /** A rank in a step. */
  struct Place {
    const Exchange* exchange = nullptr;
    std::shared_ptr<void> ready,
        taken;  // events of a GPU: what it sends is there; it has copied what it receives
  };
  /** All ranks come, all take what is theirs, and all go. */
  struct Step {
    explicit Step(int size) : places(static_cast<size_t>(size)) {}
    std::vector<Place> places;
    int come = 0, gone = 0;
  };

  /** `names` are the ranks' numbers in the group that this one is a part of. */
  LocalGroup(std::vector<int> names, double timeout_ms, bool shares_memory)
      : shares_memory(shares_memory),
        names_(std::move(names)),
        timeout_ms_(timeout_ms),
        current_(std::make_shared<Step>(size())),
        taken_(names_.size()) {}
  const bool shares_memory;
  int size() const { return static_cast<int>(names_.size()); }
  /** What messages call a rank. */
  int name(int rank) const { return names_[static_cast<size_t>(rank)]; }

  /** Waits until all have come. Throws Error(Comm) where one does not, or the group has failed. */
  std::shared_ptr<Step> meet(int rank, Place place);
  /** Waits until all have taken what is theirs: then what was sent may change. */
  void depart(int rank, Step& step, std::shared_ptr<void> taken = nullptr);
  /** Ends the next step of all, and of those who wait already. */
  void fail(const std::string& why);
  /** The `call`th group of these ranks, the same for each of them. */
  std::shared_ptr<LocalGroup> part(const std::vector<int>& ranks, int call);
  /** Whether nobody was that rank. */
  bool take(int rank);
  void give_back(int rank);
  /** Of one rank: it will make no further call. */
  void close();
  /** Whether that is so of all. */
  bool is_over();

 private:
  std::string absent(const Step& step) const;

  const std::vector<int> names_;
  const double timeout_ms_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::shared_ptr<Step> current_;
  std::string failure_;
  std::map<std::pair<std::vector<int>, int>, std::weak_ptr<LocalGroup>> parts_;
  std::vector<char> taken_;
  int closed_ = 0;
};

/** What `peer` sends to `rank`, and where it goes. */
struct Pair {
  const Tensor *from, *to;
};
/** Throws Error(Comm) where the two do not agree, and fails the group. */
std::vector<Pair> pairs_of(LocalGroup& group, const LocalGroup::Step& step, int peer, int rank);

/** Whether the tensor to receive needs a copy: it has the sender's memory already, or is lent it now. */
bool needs_copy(const Pair& pair);

/** A rank's part in a step. */
void local_exchange(const Cpu& link, LocalGroup& group, int rank, const Exchange& own);
void local_exchange(const Cuda& link, LocalGroup& group, int rank, const Exchange& own);

}  // namespace longseq
