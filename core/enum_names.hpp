#pragma once

// One table per enumeration says how its values are spelled in files and tables; readers, writers and error messages
// all use it. An enumeration joins in by specialising enumNames.

#include <array>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

namespace shardwright {

template <typename E>
struct EnumNames; // specialise: static constexpr std::array<std::pair<E, std::string_view>, n> table

/// The name of `value` as files spell it.
template <typename E> constexpr std::string_view nameOf(E value)
{
    for (const auto& [candidate, name] : EnumNames<E>::table)
        if (candidate == value)
            return name;
    return "?";
}

/// The value that `name` spells, or nothing.
template <typename E> constexpr std::optional<E> valueOf(std::string_view name)
{
    for (const auto& [value, candidate] : EnumNames<E>::table)
        if (candidate == name)
            return value;
    return std::nullopt;
}

/// "a, b or c": what an error message offers.
template <typename E> std::string allNames()
{
    std::string text;
    const auto& table = EnumNames<E>::table;
    for (std::size_t i = 0; i < table.size(); ++i) {
        if (i > 0)
            text += i + 1 == table.size() ? " or " : ", ";
        text += table[i].second;
    }
    return text;
}

} // namespace shardwright
