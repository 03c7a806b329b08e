#pragma once

// What a stretch of operations made of the states of the clocks that it met: all times are those since the host turned
// to it, and what was over by then counts as over just then, for nothing starts before the host turns to it.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

namespace shardwright {

class StretchMemo {
public:
    StretchMemo() = default;
    /// Keeps the latest `states`.
    StretchMemo(std::size_t before, std::size_t after, std::size_t states)
        : m_before(before), m_after(after), m_states(states), m_values(states * (before + after))
    {
    }

    void forget() { m_known = m_next = m_likely = 0; }

    /// The state `before`, each time within `tolerance`, and what it came to from there; nothing where it is new.
    const double* find(const double* before, double tolerance)
    {
        // States come in the order in which they came before.
        for (std::size_t tried = 0; tried < m_known; ++tried) {
            const double* known = m_values.data() + m_likely * (m_before + m_after);
            m_likely = m_likely + 1 < m_known ? m_likely + 1 : 0;
            std::size_t i = 0;
            while (i < m_before && std::abs(known[i] - before[i]) <= tolerance)
                ++i;
            if (i == m_before)
                return known;
        }
        return nullptr;
    }

    /// Keeps the state `before`, behind which what it came to is to be written.
    double* remember(const double* before)
    {
        double* place = m_values.data() + m_next * (m_before + m_after);
        m_next = m_next + 1 < m_states ? m_next + 1 : 0;
        m_known = std::min(m_known + 1, m_states);
        std::copy_n(before, m_before, place);
        return place;
    }

private:
    std::size_t m_before = 0; // figures of a state
    std::size_t m_after = 0;
    std::size_t m_states = 0;
    std::size_t m_known = 0;
    std::size_t m_next = 0;   // to be written
    std::size_t m_likely = 0; // to be looked at first
    std::vector<double> m_values;
};

} // namespace shardwright
