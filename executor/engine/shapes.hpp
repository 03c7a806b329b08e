#pragma once

// What every buffer of a schedule is on one rank: worked out from what it holds or from the kernel that first writes
// it, never from the plan's bytes.

#include <optional>
#include <string>
#include <vector>

#include "core/plan_file.hpp"
#include "executor/engine/pieces.hpp"

namespace shardwright {

class LayerKernels;

struct BufferShape {
    Bytes bytes;
    DType dtype = DType::Fp32; // of its elements, where they are not encoded
    int held = -1;             // into Shapes::held, or -1: a tensor of the layers
    bool known = false;
};

struct Shapes {
    std::vector<Held> held; // by ContentId
    std::vector<BufferShape> buffers;
};

/// Bytes that elements of this content take, encoded where it has a code: stretch by stretch.
Bytes bytesOf(const Held& held);

/// Stretches of equal length that are encoded one by one, of one version: what goes to one rank.
std::int64_t encodedStretches(const Content& content);

/// Moments that the optimizer keeps of each element.
int momentsOf(Optimizer optimizer);

/// Shapes on rank `rank`. Classes of which no buffer's size can be told are added to `unknown`, by name.
Shapes shapesOf(const ExecutablePlan& plan, const LayerKernels& kernels, std::int64_t rank,
                std::vector<std::string>& unknown);

} // namespace shardwright
