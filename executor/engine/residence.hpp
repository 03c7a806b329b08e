#pragma once

// Where kernels find their weights: the copy of a tensor that was written last, among those that stand whole in the
// device's memory in the compute dtype.

#include <vector>

#include "executor/engine/buffers.hpp"

namespace shardwright {

class Residence {
public:
    Residence(const Model& model, const Schedule& schedule, const Shapes& shapes, const Buffers& buffers,
              DType compute);

    /// The tensor's elements. std::logic_error names it where no whole copy is live.
    TensorView weight(std::int32_t tensor) const;
    /// The tensor's place in a buffer that holds it whole.
    TensorView within(BufferId buffer, std::int32_t tensor) const;

private:
    struct Copy {
        int held = -1;       // a content that holds the tensor whole
        std::int64_t at = 0; // elements
    };

    const Buffers& m_buffers;
    std::vector<NamedParameter> m_parameters;
    std::vector<std::vector<Copy>> m_copies;         // by tensor
    std::vector<std::vector<BufferId>> m_candidates; // by content: buffers that may come to hold it
};

} // namespace shardwright
