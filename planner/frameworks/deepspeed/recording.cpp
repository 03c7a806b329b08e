#include "planner/frameworks/deepspeed/recording.hpp"

#include <algorithm>

namespace shardwright {

std::vector<std::int32_t> tensorsOf(const std::vector<FlatTensor>& tensors, std::size_t first, std::size_t end)
{
    std::vector<std::int32_t> ids;
    for (std::size_t i = first; i < end; ++i)
        ids.push_back(tensors[i].tensor);
    return ids;
}

std::vector<std::int32_t> tensorsOf(const FlatOrder& order)
{
    return tensorsOf(order.tensors(), 0, order.tensors().size());
}

std::vector<std::int32_t> tensorsOf(const FlatOrder& order, int layer, int module)
{
    const auto [first, end] = order.range(layer, module);
    return tensorsOf(order.tensors(), first, end);
}

Layout wholeLayout(std::vector<std::int32_t> tensors)
{
    Layout layout;
    layout.tensors = std::move(tensors);
    return layout;
}

bool ContentRecorder::exists(BufferClassId bufferClass) const
{
    return m_builder.sizes().buffers[static_cast<std::size_t>(bufferClass)].bytes > Bytes(0);
}

BufferId ContentRecorder::allocate(BufferClassId bufferClass, const Content& content)
{
    if (!records() || !exists(bufferClass))
        return allocateScratch(bufferClass);
    return m_builder.allocate(bufferClass, m_builder.content(content));
}

BufferId ContentRecorder::allocate(BufferClassId bufferClass, Quantity quantity, DType dtype, const Layout& layout,
                                   GroupId group)
{
    return records() ? allocate(bufferClass, {quantity, dtype, layout, group}) : m_builder.allocate(bufferClass);
}

GradientBuffers ContentRecorder::allocateGradients(const GradientClassIds& classes, DType dtype, const FlatOrder& order,
                                                   int layer, int module, std::int64_t limit)
{
    ModuleGradient tensors;
    if (records())
        tensors = moduleGradient(order, layer, module, limit);
    GradientBuffers made;
    if (classes.bucketed >= 0)
        made.bucketed = allocate(classes.bucketed, Quantity::Gradients, dtype,
                                 wholeLayout(tensorsOf(tensors.bucketed, 0, tensors.bucketed.size())));
    for (std::size_t i = 0; i < classes.large.size(); ++i)
        made.large.push_back(allocate(classes.large[i], Quantity::Gradients, dtype,
                                      records() ? wholeLayout({tensors.large[i].tensor}) : Layout{}));
    return made;
}

BufferId ContentRecorder::allocateScratch(BufferClassId bufferClass)
{
    if (!records())
        return m_builder.allocate(bufferClass);
    Content content;
    content.dtype = DType::Int8;
    content.layout.room = m_builder.sizes().buffers[static_cast<std::size_t>(bufferClass)].bytes.count();
    const BufferId buffer = m_builder.allocate(bufferClass, m_builder.content(content));
    m_empty.insert(buffer);
    return buffer;
}

void ContentRecorder::hold(BufferId buffer, Quantity quantity, DType dtype, const Layout& layout, GroupId group)
{
    m_empty.erase(buffer);
    if (records())
        m_builder.hold(buffer, m_builder.content({quantity, dtype, layout, group}));
}

void ContentRecorder::actWithOperands(const Action& action, const std::vector<BufferId>& reads,
                                      const std::vector<BufferId>& writes) const
{
    if (!records())
        return;
    const auto existing = [this](const std::vector<BufferId>& buffers) {
        std::vector<BufferId> operands;
        for (const BufferId buffer : buffers)
            if (buffer >= 0 && m_empty.count(buffer) == 0)
                operands.push_back(buffer);
        return operands;
    };
    const std::vector<BufferId> from = existing(reads);
    const std::vector<BufferId> to = existing(writes);
    if (!to.empty() && (reads.empty() || !from.empty()))
        m_builder.act(action, from, to);
}

void ContentRecorder::move(const std::vector<BufferId>& from, const std::vector<BufferId>& to) const
{
    Action action;
    action.verb = Verb::Move;
    actWithOperands(action, from, to);
}

void ContentRecorder::add(const std::vector<BufferId>& from, const std::vector<BufferId>& to) const
{
    Action action;
    action.verb = Verb::Add;
    actWithOperands(action, from, to);
}

void ContentRecorder::initialize(const std::vector<BufferId>& buffers) const
{
    Action action;
    action.verb = Verb::Initialize;
    actWithOperands(action, {}, buffers);
}

void ContentRecorder::collective(Verb verb, GroupId group, const std::vector<BufferId>& reads,
                                 const std::vector<BufferId>& writes, ContentId content) const
{
    if (m_builder.sizes().groups[static_cast<std::size_t>(group)].ranks == 1)
        return;
    Action action;
    action.verb = verb;
    action.group = group;
    action.content = content;
    actWithOperands(action, reads, writes);
}

void ContentRecorder::clip(GroupId group, const std::vector<BufferId>& gradients,
                           const std::vector<BufferId>& normOf) const
{
    Action action;
    action.verb = Verb::Clip;
    action.group = group;
    actWithOperands(action, normOf, gradients);
}

void ContentRecorder::update(const std::vector<BufferId>& gradients, const std::vector<BufferId>& stepped) const
{
    Action action;
    action.verb = Verb::Update;
    actWithOperands(action, gradients, stepped);
}

} // namespace shardwright
