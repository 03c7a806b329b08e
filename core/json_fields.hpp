#pragma once

// One description of a struct's fields serves reading, writing and the list of known keys, so the three cannot drift
// apart: a function template `visit(fields, struct)` names each key once, and FieldReader or FieldWriter walks it.

#include <algorithm>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "core/json_cursor.hpp"

namespace shardwright {

/// "a, b or c" of some values of an enumeration, as error messages offer them.
template <typename E> std::string namesOf(const std::vector<E>& values)
{
    std::string text;
    for (std::size_t i = 0; i < values.size(); ++i) {
        if (i > 0)
            text += i + 1 == values.size() ? " or " : ", ";
        text += nameOf(values[i]);
    }
    return text;
}

/// Reads the members of one JSON object into variables; absent members keep what the variable holds. finish() reports
/// the keys that no field asked for.
class FieldReader {
public:
    explicit FieldReader(const JsonCursor& cursor) : m_cursor(cursor) {}

    template <typename T, typename... Range> void field(const std::string& key, T& target, Range... range)
    {
        m_known.push_back(key);
        m_cursor.read(key, target, range...);
    }
    void field(const std::string& key, std::vector<std::string>& target)
    {
        const auto member = find(key);
        if (!member || !member->expectArray())
            return;
        target.clear();
        for (const JsonCursor& element : member->elements())
            if (const auto value = element.asString())
                target.push_back(*value);
    }

    /// An enumeration of which only `allowed` make sense here. E is the enumeration or an optional of it.
    template <typename E, typename Value>
    void oneOf(const std::string& key, E& target, const std::vector<Value>& allowed)
    {
        const auto member = find(key);
        const auto text = member ? member->asString() : std::nullopt;
        if (!text)
            return;
        const auto value = valueOf<Value>(*text);
        if (value && std::find(allowed.begin(), allowed.end(), *value) != allowed.end())
            target = *value;
        else
            member->complain("\"" + *text + "\" is not possible here", namesOf(allowed));
    }

    /// As oneOf, where the text `none` stands for nothing.
    template <typename Value>
    void oneOfOr(const std::string& none, const std::string& key, std::optional<Value>& target,
                 const std::vector<Value>& allowed)
    {
        const auto member = find(key);
        if (member && member->json() == none)
            target.reset();
        else
            oneOf(key, target, allowed);
    }

    /// A number from 0 to `maximum` where 0 means switched off.
    void zeroIsOff(const std::string& key, std::optional<double>& target, double maximum)
    {
        if (const auto member = find(key))
            if (const auto value = member->asNumber(0, maximum))
                target = *value > 0 ? value : std::nullopt;
    }

    /// The object under `key`: visit(fields) names its members.
    template <typename Visit> void object(const std::string& key, Visit visit)
    {
        if (const auto member = find(key); member && member->expectObject()) {
            FieldReader fields(*member);
            visit(fields);
            fields.finish();
        }
    }

    /// An object that switches something on by being there: visit(fields, value).
    template <typename T, typename Visit>
    void optionalObject(const std::string& key, std::optional<T>& target, Visit visit)
    {
        if (m_cursor.has(key))
            target.emplace();
        object(key, [&](FieldReader& fields) { visit(fields, *target); });
    }

    /// A key that is read elsewhere.
    void known(const std::string& key) { m_known.push_back(key); }

    void finish() const { m_cursor.rejectUnknownKeys(m_known); }

private:
    std::optional<JsonCursor> find(const std::string& key)
    {
        m_known.push_back(key);
        return m_cursor.find(key);
    }

    JsonCursor m_cursor;
    std::vector<std::string> m_known;
};

/// Writes what FieldReader reads.
class FieldWriter {
public:
    template <typename T, typename... Range> void field(const std::string& key, const T& value, Range...)
    {
        if constexpr (std::is_enum_v<T>)
            m_json[key] = nameOf(value);
        else
            m_json[key] = value;
    }
    template <typename T> void field(const std::string& key, const std::optional<T>& value)
    {
        if (value)
            field(key, *value);
    }
    template <typename E, typename Value>
    void oneOf(const std::string& key, const E& value, const std::vector<Value>& /*allowed*/)
    {
        field(key, value);
    }
    template <typename Value>
    void oneOfOr(const std::string& none, const std::string& key, const std::optional<Value>& value,
                 const std::vector<Value>& /*allowed*/)
    {
        m_json[key] = value ? std::string(nameOf(*value)) : none;
    }
    void zeroIsOff(const std::string& key, const std::optional<double>& value, double /*maximum*/)
    {
        m_json[key] = value.value_or(0);
    }
    template <typename Visit> void object(const std::string& key, Visit visit)
    {
        FieldWriter fields;
        visit(fields);
        if (!fields.m_json.empty())
            m_json[key] = std::move(fields.m_json);
    }
    template <typename T, typename Visit>
    void optionalObject(const std::string& key, const std::optional<T>& value, Visit visit)
    {
        if (value)
            object(key, [&](FieldWriter& fields) { visit(fields, *value); });
    }

    Json take() { return std::move(m_json); }

private:
    Json m_json = Json::object();
};

} // namespace shardwright
