#include "planner/configs/accelerate_section.hpp"

#include <algorithm>
#include <charconv>

#include "core/json_cursor.hpp"

namespace shardwright {

namespace {

std::string cased(const std::string& text, int (*change)(int))
{
    std::string result = text;
    std::transform(result.begin(), result.end(), result.begin(),
                   [&](unsigned char c) { return static_cast<char>(change(c)); });
    return result;
}

bool isOneOf(const std::string& text, std::initializer_list<std::string_view> words)
{
    return std::find(words.begin(), words.end(), text) != words.end();
}

std::optional<std::int64_t> number(const Json& value)
{
    if (value.is_number_integer())
        return value.get<std::int64_t>();
    if (!value.is_string())
        return std::nullopt;
    const auto& text = value.get_ref<const std::string&>();
    std::int64_t result = 0;
    const auto [stop, problem] = std::from_chars(text.data(), text.data() + text.size(), result);
    if (problem != std::errc() || stop != text.data() + text.size())
        return std::nullopt;
    return result;
}

} // namespace

std::optional<JsonCursor> AccelerateSection::find(const std::string& key)
{
    m_read.push_back(key);
    auto value = m_object.find(key);
    if (!m_prefix.empty() && key.starts_with(m_prefix)) {
        const std::string bare = key.substr(m_prefix.size());
        m_read.push_back(bare);
        const auto other = m_object.find(bare);
        if (value && other)
            other->complain("says the same as \"" + key + "\"", "one of the two");
        if (!value)
            value = other;
    }
    if (value && value->json().is_string() && value->json().get_ref<const std::string&>().empty())
        return std::nullopt;
    return value;
}

std::optional<bool> AccelerateSection::flag(const std::string& key)
{
    const auto member = find(key);
    if (!member)
        return std::nullopt;
    if (member->json().is_boolean())
        return member->json().get<bool>();
    // str_to_bool of accelerate/utils/environment.py
    const std::string text =
        member->json().is_string() ? cased(member->json().get<std::string>(), std::tolower) : member->json().dump();
    if (isOneOf(text, {"y", "yes", "t", "true", "on", "1"}))
        return true;
    if (isOneOf(text, {"n", "no", "f", "false", "off", "0"}))
        return false;
    return member->asBool();
}

std::optional<std::int64_t> AccelerateSection::integer(const std::string& key, std::int64_t minimum,
                                                       std::int64_t maximum)
{
    const auto member = find(key);
    if (!member)
        return std::nullopt;
    const auto value = number(member->json());
    return value && *value >= minimum && *value <= maximum ? value : member->asInteger(minimum, maximum);
}

std::optional<std::size_t> AccelerateSection::choice(const std::string& key, const std::vector<std::string>& names)
{
    const auto member = find(key);
    if (!member)
        return std::nullopt;
    const std::int64_t index = number(member->json()).value_or(0);
    if (index >= 1 && index <= static_cast<std::int64_t>(names.size()))
        return static_cast<std::size_t>(index - 1);
    std::string expected;
    if (member->json().is_string()) {
        const auto found =
            std::find(names.begin(), names.end(), cased(member->json().get<std::string>(), std::toupper));
        if (found != names.end())
            return static_cast<std::size_t>(found - names.begin());
    }
    for (const std::string& name : names)
        expected += (expected.empty() ? "" : ", ") + name;
    member->complain("is " + member->json().dump(-1, ' ', false, Json::error_handler_t::replace), expected);
    return std::nullopt;
}

std::vector<std::string> AccelerateSection::unreadKeys() const
{
    std::vector<std::string> keys;
    for (const auto& item : m_object.json().items())
        if (std::find(m_read.begin(), m_read.end(), item.key()) == m_read.end())
            keys.push_back(item.key());
    return keys;
}

} // namespace shardwright
