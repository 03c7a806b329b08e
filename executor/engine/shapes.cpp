#include "executor/engine/shapes.hpp"

#include <algorithm>
#include <set>

#include <fmt/format.h>

#include "executor/comm/codec.hpp"
#include "executor/layers/layer_kernels.hpp"

namespace shardwright {

namespace {

constexpr std::int64_t kTokenBytes = 8; // int64, as torch's indices

class Shaping {
public:
    Shaping(const ExecutablePlan& plan, const LayerKernels& kernels, std::int64_t rank)
        : m_plan(plan), m_schedule(plan.schedule), m_kernels(kernels)
    {
        const std::vector<NamedParameter> parameters = listParameters(plan.model);
        const int moments = momentsOf(plan.training.optimizer);
        for (const Content& content : m_schedule.contents) {
            const std::int64_t part =
                content.group < 0 ? 0 : m_schedule.sizes.groups[static_cast<std::size_t>(content.group)].placeOf(rank);
            m_shapes.held.push_back(heldBy(content, parameters, part, moments));
        }
        m_shapes.buffers.resize(m_schedule.buffers.size());
    }

    Shapes run(std::vector<std::string>& unknown)
    {
        for (std::size_t i = 0; i < m_shapes.buffers.size(); ++i)
            if (const ContentId content = m_schedule.contentOf[i]; content >= 0) {
                const Held& held = m_shapes.held[static_cast<std::size_t>(content)];
                m_shapes.buffers[i] = {bytesOf(held), held.content.dtype, content, true};
            }
        for (const Action& action : m_schedule.actions)
            shapeWrites(action);
        takeFromClass();
        std::set<std::string> names;
        for (std::size_t i = 0; i < m_shapes.buffers.size(); ++i)
            if (!m_shapes.buffers[i].known)
                names.insert(std::string(classOf(i).spec->name));
        unknown.insert(unknown.end(), names.begin(), names.end());
        return std::move(m_shapes);
    }

private:
    const BufferClass& classOf(std::size_t buffer) const
    {
        return m_schedule.sizes.buffers[static_cast<std::size_t>(m_schedule.buffers[buffer])];
    }
    BufferId operand(const Action& action, std::size_t i) const { return m_schedule.operands[action.firstOperand + i]; }
    BufferShape& shape(BufferId buffer) { return m_shapes.buffers[static_cast<std::size_t>(buffer)]; }

    void shapeWrites(const Action& action)
    {
        std::vector<LayerKernels::Made> made;
        for (std::size_t i = 0; i < action.writes; ++i) {
            BufferShape& written = shape(operand(action, action.reads + i));
            if (written.known)
                continue;
            if (action.verb == Verb::LoadBatch) {
                // tokens and labels
                written = {Bytes(checkedMultiply(2 * kTokenBytes, m_plan.training.tokensPerMicroBatch())), DType::Int64,
                           -1, true};
            } else if (action.verb == Verb::Compute) {
                if (made.empty())
                    made = m_kernels.made(action.kernel, action.layer, action.module);
                if (i < made.size())
                    written = {made[i].bytes, made[i].dtype, -1, true};
            } else if (i < action.reads) { // a copy is like its original
                const BufferShape& read = shape(operand(action, i));
                if (read.known && read.held < 0)
                    written = {read.bytes, read.dtype, -1, true};
            }
        }
    }

    /// What is carried over from the step before is written under another id of the same class.
    void takeFromClass()
    {
        std::vector<const BufferShape*> known(m_schedule.sizes.buffers.size(), nullptr);
        for (std::size_t i = 0; i < m_shapes.buffers.size(); ++i)
            if (m_shapes.buffers[i].known && m_shapes.buffers[i].held < 0)
                known[static_cast<std::size_t>(m_schedule.buffers[i])] = &m_shapes.buffers[i];
        for (std::size_t i = 0; i < m_shapes.buffers.size(); ++i) {
            BufferShape& buffer = m_shapes.buffers[i];
            if (buffer.known)
                continue;
            if (const BufferShape* like = known[static_cast<std::size_t>(m_schedule.buffers[i])])
                buffer = *like;
            else if (classOf(i).bytes == Bytes(0)) // stands in the schedule for its structure only
                buffer.known = true;
        }
    }

    const ExecutablePlan& m_plan;
    const Schedule& m_schedule;
    const LayerKernels& m_kernels;
    Shapes m_shapes;
};

} // namespace

Bytes bytesOf(const Held& held)
{
    const Content& content = held.content;
    if (content.codec == Codec::None)
        return bytesOf(held.elements, content.dtype);
    const std::int64_t stretches = encodedStretches(content);
    return encodedBytes({content.codec, content.block}, held.elements / stretches) *
           checkedMultiply(stretches, content.versions);
}

std::int64_t encodedStretches(const Content& content)
{
    const Layout& layout = content.layout;
    const std::int64_t pieces = layout.cut == Cut::Swizzled ? layout.multiple : 1;
    return layout.allParts ? checkedMultiply(layout.parts, pieces) : pieces;
}

int momentsOf(Optimizer optimizer)
{
    switch (optimizer) {
    case Optimizer::Sgd: return 0;
    case Optimizer::SgdMomentum:
    case Optimizer::Lion: return 1;
    default: return 2;
    }
}

Shapes shapesOf(const ExecutablePlan& plan, const LayerKernels& kernels, std::int64_t rank,
                std::vector<std::string>& unknown)
{
    return Shaping(plan, kernels, rank).run(unknown);
}

} // namespace shardwright
