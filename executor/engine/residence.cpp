#include "executor/engine/residence.hpp"

#include <stdexcept>

#include <fmt/format.h>

namespace shardwright {

Residence::Residence(const Model& model, const Schedule& schedule, const Shapes& shapes, const Buffers& buffers,
                     DType compute)
    : m_buffers(buffers), m_parameters(listParameters(model)), m_copies(m_parameters.size()),
      m_gradients(m_parameters.size()), m_candidates(shapes.held.size())
{
    for (std::size_t i = 0; i < shapes.held.size(); ++i) {
        const Held& held = shapes.held[i];
        if (held.content.codec != Codec::None)
            continue;
        const bool copies = held.content.quantity == Quantity::Parameters && held.content.dtype == compute;
        const bool sums = held.content.quantity == Quantity::Gradients;
        for (const Piece& piece : held.pieces) {
            const auto tensor = static_cast<std::size_t>(piece.tensor);
            if ((copies || sums) && piece.first == 0 && piece.count == m_parameters[tensor].numel)
                (copies ? m_copies : m_gradients)[tensor].push_back({static_cast<int>(i), piece.at});
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
    return viewOf(newest, at, tensor);
}

TensorView Residence::viewOf(BufferId buffer, std::int64_t at, std::int32_t tensor) const
{
    const DType dtype = m_buffers.shape(buffer).dtype;
    return {m_buffers.data(buffer) + bytesOf(at, dtype).count(), m_parameters[static_cast<std::size_t>(tensor)].numel,
            dtype};
}

Residence::GradientPlace Residence::gradient(BufferId named, std::int32_t tensor) const
{
    const auto index = static_cast<std::size_t>(tensor);
    const std::string& name = m_parameters[index].name;
    const Held* held = m_buffers.held(named);
    const Piece* piece = held == nullptr || held->content.codec != Codec::None
                             ? nullptr
                             : held->whole(tensor, m_parameters[index].numel);
    if (piece != nullptr)
        return {named, viewOf(named, piece->at, tensor)};
    GradientPlace place;
    for (const Copy& copy : m_gradients[index])
        for (const BufferId buffer : m_candidates[static_cast<std::size_t>(copy.held)]) {
            if (!m_buffers.live(buffer) || m_buffers.shape(buffer).held != copy.held || m_buffers.written(buffer) > 0)
                continue;
            if (place.buffer >= 0)
                throw std::logic_error(fmt::format("the gradient of {} could go to \"{}\" and to \"{}\"", name,
                                                   m_buffers.nameOf(place.buffer), m_buffers.nameOf(buffer)));
            place = {buffer, viewOf(buffer, copy.at, tensor)};
        }
    if (place.buffer < 0)
        throw std::logic_error(fmt::format("\"{}\" does not hold {} whole, nor does another buffer that nothing has "
                                           "written",
                                           m_buffers.nameOf(named), name));
    return place;
}

} // namespace shardwright
