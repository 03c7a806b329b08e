#pragma once

// Reader: what each rank moves between its GPU and host memory, from what the buffers of a recorded schedule hold.
// Payloads are the first rank's, the one with the longest stretches; the last parts of tensors can be shorter, and
// under ZeRO-1 and 2 every rank keeps other gradients of a bucket.

#include <vector>

#include "core/schedule.hpp"

namespace shardwright {

/// Of one optimizer step.
struct HostLinkBytes {
    Bytes toDevice;
    Bytes toHost;
    bool operator==(const HostLinkBytes&) const = default;
};

/// By rank. `schedule` is executable; `parameters`: listParameters of its model.
std::vector<HostLinkBytes> hostLinkByRank(const Schedule& schedule, const std::vector<NamedParameter>& parameters,
                                          std::int64_t ranks);

} // namespace shardwright
