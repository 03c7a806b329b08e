#pragma once

// Where kernels find their weights: the copy of a tensor that was written last, among those that stand whole in the
// device's memory in the compute dtype; and where they put the gradients of them.

#include <vector>

#include "executor/engine/buffers.hpp"

namespace shardwright {

class Residence {
public:
    Residence(const Model& model, const Schedule& schedule, const Shapes& shapes, const Buffers& buffers,
              DType compute);

    /// The tensor's elements. std::logic_error names it where no whole copy is live.
    TensorView weight(std::int32_t tensor) const;
    struct GradientPlace {
        BufferId buffer = -1;
        TensorView view;
    };
    /// Where a kernel writes the tensor's gradient: in `named` where that holds it whole, else in the one buffer that
    /// does and that nothing has written yet (gradients of a module that go different ways are made apart).
    /// std::logic_error names the tensor where there is none, or more than one.
    GradientPlace gradient(BufferId named, std::int32_t tensor) const;

private:
    struct Copy {
        int held = -1;       // a content that holds the tensor whole
        std::int64_t at = 0; // elements
    };

    TensorView viewOf(BufferId buffer, std::int64_t at, std::int32_t tensor) const;

    const Buffers& m_buffers;
    std::vector<NamedParameter> m_parameters;
    std::vector<std::vector<Copy>> m_copies;         // by tensor
    std::vector<std::vector<Copy>> m_gradients;      // by tensor
    std::vector<std::vector<BufferId>> m_candidates; // by content: buffers that may come to hold it
};

} // namespace shardwright
