#pragma once

// A place in the tree of partial assignments: which value every axis takes, from the first axis on.

#include <algorithm>
#include <array>
#include <compare>
#include <cstdint>
#include <stdexcept>

namespace shardwright::search {

/// Paths of the same tree are ordered lexicographically by the indices of their values; that order breaks all ties.
class Path {
public:
    static constexpr std::size_t kMost = 18; // axes

    std::size_t size() const { return m_size; }
    std::uint16_t operator[](std::size_t axis) const { return m_values[axis]; }

    void push(std::size_t value)
    {
        if (m_size == kMost || value > UINT16_MAX)
            throw std::logic_error("a search path has too many axes, or an axis too many values");
        m_values[m_size++] = static_cast<std::uint16_t>(value);
    }
    void pop() { m_values[--m_size] = 0; }
    Path first(std::size_t axes) const
    {
        Path path;
        path.m_size = std::min(axes, m_size);
        std::copy_n(m_values.begin(), path.m_size, path.m_values.begin());
        return path;
    }

    std::strong_ordering operator<=>(const Path& other) const
    {
        return std::lexicographical_compare_three_way(m_values.begin(), m_values.begin() + m_size,
                                                      other.m_values.begin(), other.m_values.begin() + other.m_size);
    }
    bool operator==(const Path& other) const { return (*this <=> other) == std::strong_ordering::equal; }

private:
    std::array<std::uint16_t, kMost> m_values{};
    std::size_t m_size = 0;
};

} // namespace shardwright::search
