#include "executor/engine/residence.hpp"

#include <stdexcept>

#include <fmt/format.h>

namespace shardwright {

Residence::Residence(const Model& model, const Schedule& schedule, const Shapes& shapes, const Buffers& buffers,
                     DType compute)
    : m_buffers(buffers), m_parameters(listParameters(model)), m_copies(m_parameters.size()),
      m_candidates(shapes.held.size())
{
    for (std::size_t i = 0; i < shapes.held.size(); ++i) {
        const Held& held = shapes.held[i];
        if (held.content.quantity != Quantity::Parameters || held.content.codec != Codec::None ||
            held.content.dtype != compute)
            continue;
        for (const Piece& piece : held.pieces) {
            const auto tensor = static_cast<std::size_t>(piece.tensor);
            if (piece.first == 0 && piece.count == m_parameters[tensor].numel)
                m_copies[tensor].push_back({static_cast<int>(i), piece.at});
        }
    }
    const auto mayHold = [&](BufferId buffer, ContentId content) {
        if (content >= 0 && buffers.place(buffer) == Place::Gpu)
            m_candidates[static_cast<std::size_t>(content)].push_back(buffer);
    };
    for (std::size_t i = 0; i < schedule.contentOf.size(); ++i)
        mayHold(static_cast<BufferId>(i), schedule.contentOf[i]);
    for (const Action& action : schedule.actions)
        for (std::size_t i = 0; action.verb == Verb::Hold && i < action.writes; ++i)
            mayHold(schedule.operands[action.firstOperand + action.reads + i], action.content);
}

TensorView Residence::weight(std::int32_t tensor) const
{
    const auto index = static_cast<std::size_t>(tensor);
    BufferId newest = -1;
    std::int64_t at = 0;
    for (const Copy& copy : m_copies[index])
        for (const BufferId buffer : m_candidates[static_cast<std::size_t>(copy.held)])
            if (m_buffers.live(buffer) && m_buffers.shape(buffer).held == copy.held && m_buffers.written(buffer) > 0 &&
                (newest < 0 || m_buffers.written(buffer) > m_buffers.written(newest))) {
                newest = buffer;
                at = copy.at;
            }
    if (newest < 0)
        throw std::logic_error(
            fmt::format("no whole copy of {} is live on the device in the compute dtype", m_parameters[index].name));
    const DType dtype = m_buffers.shape(newest).dtype;
    return {m_buffers.data(newest) + bytesOf(at, dtype).count(), m_parameters[index].numel, dtype};
}

TensorView Residence::within(BufferId buffer, std::int32_t tensor) const
{
    const auto index = static_cast<std::size_t>(tensor);
    const Held* held = m_buffers.held(buffer);
    const Piece* piece = held == nullptr || held->content.codec != Codec::None
                             ? nullptr
                             : held->whole(tensor, m_parameters[index].numel);
    if (piece == nullptr)
        throw std::logic_error(
            fmt::format("\"{}\" does not hold {} whole", m_buffers.nameOf(buffer), m_parameters[index].name));
    const DType dtype = m_buffers.shape(buffer).dtype;
    return {m_buffers.data(buffer) + bytesOf(piece->at, dtype).count(), piece->count, dtype};
}

} // namespace shardwright
