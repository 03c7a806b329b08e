#include "executor/engine/residence.hpp"

#include <stdexcept>

#include <fmt/format.h>

namespace shardwright {

Residence::Residence(const Model& model, const Schedule& schedule, const Buffers& buffers, DType compute)
    : m_buffers(buffers), m_parameters(listParameters(model)), m_copies(m_parameters.size())
{
    for (std::size_t i = 0; i < schedule.buffers.size(); ++i) {
        const auto buffer = static_cast<BufferId>(i);
        const Held* held = buffers.held(buffer);
        if (held == nullptr || held->content.quantity != Quantity::Parameters || held->content.codec != Codec::None ||
            held->content.dtype != compute || buffers.place(buffer) != Place::Gpu)
            continue;
        for (const Piece& piece : held->pieces) {
            const auto tensor = static_cast<std::size_t>(piece.tensor);
            if (piece.first == 0 && piece.count == m_parameters[tensor].numel)
                m_copies[tensor].push_back({buffer, piece.at});
        }
    }
}

TensorView Residence::weight(std::int32_t tensor) const
{
    const auto index = static_cast<std::size_t>(tensor);
    const Copy* newest = nullptr;
    for (const Copy& copy : m_copies[index])
        if (m_buffers.live(copy.buffer) && m_buffers.written(copy.buffer) > 0 &&
            (newest == nullptr || m_buffers.written(copy.buffer) > m_buffers.written(newest->buffer)))
            newest = &copy;
    if (newest == nullptr)
        throw std::logic_error(
            fmt::format("no whole copy of {} is live on the device in the compute dtype", m_parameters[index].name));
    const DType dtype = m_buffers.shape(newest->buffer).dtype;
    return {m_buffers.data(newest->buffer) + bytesOf(newest->at, dtype).count(), m_parameters[index].numel, dtype};
}

TensorView Residence::within(BufferId buffer, std::int32_t tensor) const
{
    const auto index = static_cast<std::size_t>(tensor);
    const Held* held = m_buffers.held(buffer);
    const Piece* piece = held == nullptr ? nullptr : held->whole(tensor, m_parameters[index].numel);
    if (piece == nullptr)
        throw std::logic_error(
            fmt::format("\"{}\" does not hold {} whole", m_buffers.nameOf(buffer), m_parameters[index].name));
    const DType dtype = m_buffers.shape(buffer).dtype;
    return {m_buffers.data(buffer) + bytesOf(piece->at, dtype).count(), piece->count, dtype};
}

} // namespace shardwright
