#include "executor/layers/host_launch.hpp"

#include <cmath>

namespace shardwright {

TokenGroups HostLaunch::groupsOf(const std::int64_t* tokens, std::int64_t rows, std::int64_t vocab)
{
    m_begin.assign(static_cast<std::size_t>(vocab) + 1, 0);
    m_order.resize(static_cast<std::size_t>(rows));
    for (std::int64_t row = 0; row < rows; ++row)
        ++m_begin[static_cast<std::size_t>(tokens[row]) + 1];
    for (std::size_t token = 1; token < m_begin.size(); ++token)
        m_begin[token] += m_begin[token - 1];
    // From the back, so that each group's begin is where it should be once its first row is placed.
    std::vector<std::int64_t>& end = m_begin;
    for (std::int64_t row = rows; row-- > 0;)
        m_order[static_cast<std::size_t>(--end[static_cast<std::size_t>(tokens[row]) + 1])] = row;
    // end[t + 1] is now where group t begins.
    end.erase(end.begin());
    end.push_back(rows);
    return {m_begin.data(), m_order.data()};
}

/// Angles in fp32, as transformers' LlamaRotaryEmbedding has them.
const float* HostLaunch::rotation(std::int64_t length, const RotaryFrequencies& frequencies)
{
    if (length == m_length && frequencies == m_frequencies)
        return m_rotation.data();
    const auto half = static_cast<std::int64_t>(frequencies.each.size());
    m_rotation.resize(static_cast<std::size_t>(2 * length * half));
    for (std::int64_t j = 0; j < half; ++j)
        for (std::int64_t position = 0; position < length; ++position) {
            const float angle = static_cast<float>(position) * frequencies.each[static_cast<std::size_t>(j)];
            m_rotation[static_cast<std::size_t>(position * half + j)] = std::cos(angle) * frequencies.scale;
            m_rotation[static_cast<std::size_t>((length + position) * half + j)] = std::sin(angle) * frequencies.scale;
        }
    m_length = length;
    m_frequencies = frequencies;
    return m_rotation.data();
}

} // namespace shardwright
