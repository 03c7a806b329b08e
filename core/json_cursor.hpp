#pragma once

// Reading JSON strictly: every problem becomes a Finding with its JSON pointer, unknown keys are found (with the
// nearest known one), and reading goes on so that all problems are told at once.

#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include "core/diagnostics.hpp"
#include "core/enum_names.hpp"
#include "core/json.hpp"

namespace shardwright {

struct JsonSyntax {
    bool comments = false; // DeepSpeed reads its JSON through hjson: comments are allowed
    int maximumDepth = 64;
};

/// Parses `text`; a syntax error, a duplicate key or excessive nesting throws InputError with line and column.
/// `file` is what messages call the text.
Json parseJson(const std::string& text, const std::string& file, const JsonSyntax& syntax = {});

/// Reads a whole file. Missing or unreadable, or larger than 64 MiB: InputError naming it.
std::string readTextFile(const std::string& path);

/// A place inside a JSON document under reading. Cheap to copy; the document and the Findings must outlive it.
class JsonCursor {
public:
    JsonCursor(const Json& value, Findings& findings, std::string pointer = {})
        : m_value(&value), m_findings(&findings), m_pointer(std::move(pointer))
    {
    }

    const Json& json() const { return *m_value; }
    const std::string& pointer() const { return m_pointer; }
    Findings& findings() const { return *m_findings; }

    /// Reports a problem at this place.
    void complain(const std::string& what, const std::string& expected = {}) const;

    /// True when this is an object; otherwise reports and returns false.
    bool expectObject() const;
    bool expectArray() const;

    /// Reports every key of this object that is not in `known`.
    void rejectUnknownKeys(const std::vector<std::string>& known) const;

    bool has(const std::string& key) const; // present and not null
    /// The member `key`, when this is an object that has it and it is not null.
    std::optional<JsonCursor> find(const std::string& key) const;
    /// The member `key`; absent is reported.
    std::optional<JsonCursor> require(const std::string& key, const std::string& meaning) const;
    std::vector<JsonCursor> elements() const;

    // This value itself; a wrong type or range is reported and gives nothing.
    std::optional<std::int64_t> asInteger(std::int64_t minimum, std::int64_t maximum) const;
    std::optional<double> asNumber(double minimum, double maximum) const;
    std::optional<bool> asBool() const;
    std::optional<std::string> asString() const;

    template <typename E> std::optional<E> asEnum() const
    {
        const auto text = asString();
        if (!text)
            return std::nullopt;
        const auto value = valueOf<E>(*text);
        if (!value)
            complain("\"" + *text + "\" is not known here", allNames<E>());
        return value;
    }

    // Member `key` read into `target` when present; `target` keeps its default otherwise.
    void read(const std::string& key, std::int64_t& target, std::int64_t minimum = 0,
              std::int64_t maximum = std::numeric_limits<std::int64_t>::max()) const;
    void read(const std::string& key, int& target, int minimum = 0,
              int maximum = std::numeric_limits<int>::max()) const;
    void read(const std::string& key, double& target, double minimum, double maximum) const;
    void read(const std::string& key, bool& target) const;
    void read(const std::string& key, std::string& target) const;

    template <typename E>
    requires std::is_enum_v<E>
    void read(const std::string& key, E& target) const
    {
        if (const auto member = find(key))
            if (const auto value = member->template asEnum<E>())
                target = *value;
    }

    template <typename E>
    requires std::is_enum_v<E>
    void read(const std::string& key, std::optional<E>& target) const
    {
        if (const auto member = find(key))
            if (const auto value = member->template asEnum<E>())
                target = *value;
    }

private:
    const Json* m_value;
    Findings* m_findings;
    std::string m_pointer;
};

} // namespace shardwright
