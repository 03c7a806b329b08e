#pragma once

// What DeepSpeed's buffers hold and what is done to it, for schedules that are carried out. Where the builder does not
// record, everything here does nothing.

#include <set>
#include <vector>

#include "core/schedule.hpp"
#include "planner/frameworks/deepspeed/bucket_plan.hpp"

namespace shardwright {

/// Indices into listParameters of some tensors, in their order.
std::vector<std::int32_t> tensorsOf(const std::vector<FlatTensor>& tensors, std::size_t first, std::size_t end);
std::vector<std::int32_t> tensorsOf(const FlatOrder& order);
std::vector<std::int32_t> tensorsOf(const FlatOrder& order, int layer, int module);

/// Tensors one after another, without padding.
Layout wholeLayout(std::vector<std::int32_t> tensors);

class ContentRecorder {
public:
    explicit ContentRecorder(ScheduleBuilder& builder) : m_builder(builder) {}

    bool records() const { return m_builder.records(); }
    /// A buffer without bytes stands in the schedule for its place alone: as an operand it is left out.
    BufferId allocate(BufferClassId bufferClass, Quantity quantity, DType dtype, const Layout& layout,
                      GroupId group = -1);
    BufferId allocate(BufferClassId bufferClass, const Content& content);
    /// Of a module, whole: what goes through the bucket in one buffer, tensors of more than `limit` elements each in
    /// its own.
    GradientBuffers allocateGradients(const GradientClassIds& classes, DType dtype, const FlatOrder& order, int layer,
                                      int module, std::int64_t limit);
    /// A buffer that nothing is held in: DeepSpeed stages through it what the executor moves at once.
    BufferId allocateScratch(BufferClassId bufferClass);

    /// A re-description of what lies in the buffer.
    void hold(BufferId buffer, Quantity quantity, DType dtype, const Layout& layout, GroupId group = -1);
    bool exists(BufferClassId bufferClass) const;

    void move(const std::vector<BufferId>& from, const std::vector<BufferId>& to) const;
    void add(const std::vector<BufferId>& from, const std::vector<BufferId>& to) const;
    void initialize(const std::vector<BufferId>& buffers) const;
    /// Nothing over a group of one rank.
    void collective(Verb verb, GroupId group, const std::vector<BufferId>& reads, const std::vector<BufferId>& writes,
                    ContentId content = -1) const;
    /// Without `normOf` the norm is that of the gradients themselves.
    void clip(GroupId group, const std::vector<BufferId>& gradients, const std::vector<BufferId>& normOf = {}) const;
    void update(const std::vector<BufferId>& gradients, const std::vector<BufferId>& stepped) const;

private:
    void actWithOperands(const Action& action, const std::vector<BufferId>& reads,
                         const std::vector<BufferId>& writes) const;

    ScheduleBuilder& m_builder;
    std::set<BufferId> m_empty; // nothing is held in them
};

} // namespace shardwright
