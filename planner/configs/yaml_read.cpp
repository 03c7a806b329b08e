#include <algorithm>
#include <charconv>
#include <cmath>
#include <sstream>

#include <fmt/format.h>
#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/parser.h>

#include "core/json_cursor.hpp"
#include "planner/configs/yaml.hpp"
#include "planner/configs/yaml_scalar.hpp"

namespace shardwright {

namespace {

constexpr std::size_t kMaximumText = std::size_t{1} << 20;
constexpr std::size_t kMaximumDepth = 64;

std::string placeOf(const YAML::Mark& mark)
{
    return mark.line < 0 ? std::string() : fmt::format("line {}, column {}", mark.line + 1, mark.column + 1);
}

std::string pointerPart(const std::string& key)
{
    std::string part = "/";
    for (const char c : key) {
        if (c == '~')
            part += "~0";
        else if (c == '/')
            part += "~1";
        else
            part += c;
    }
    return part;
}

/// Builds Json from yaml-cpp's events, so that no node graph exists that aliases could blow up.
class Builder : public YAML::EventHandler {
public:
    explicit Builder(std::string file) : m_file(std::move(file)) {}

    YamlDocument take() { return std::move(m_document); }

    void OnDocumentStart(const YAML::Mark&) override {}
    void OnDocumentEnd() override {}
    void OnNull(const YAML::Mark& mark, YAML::anchor_t) override { scalar(mark, Json(nullptr), ""); }
    void OnAlias(const YAML::Mark& mark, YAML::anchor_t) override
    {
        refuse(mark, "an alias (*name)", "the value itself");
    }
    void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t, const std::string& value) override
    {
        constexpr std::string_view kText = "tag:yaml.org,2002:str";
        if (tag == "?" || tag.empty())
            scalar(mark, yamlScalar(value), value);
        else if (tag == "!" || tag == kText) // "!" marks a quoted scalar
            scalar(mark, Json(value), value);
        else
            refuse(mark, fmt::format("the tag {}", tag), "a plain value");
    }
    void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t,
                         YAML::EmitterStyle::value) override
    {
        open(mark, tag, Json::array());
    }
    void OnSequenceEnd() override { close(); }
    void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t, YAML::EmitterStyle::value) override
    {
        open(mark, tag, Json::object());
    }
    void OnMapEnd() override { close(); }

private:
    struct Frame {
        Json value;
        std::string pointer; // where `value` belongs
        std::string key;     // of a map: the key whose value comes next
        bool keyKnown = false;
    };

    [[noreturn]] void refuse(const YAML::Mark& mark, const std::string& what, const std::string& expected) const
    {
        throw InputError(m_file, placeOf(mark), what + " is not taken here", expected);
    }

    bool expectsKey() const
    {
        return !m_frames.empty() && m_frames.back().value.is_object() && !m_frames.back().keyKnown;
    }

    void scalar(const YAML::Mark& mark, Json value, const std::string& text)
    {
        if (!expectsKey()) {
            place(mark, std::move(value));
            return;
        }
        Frame& frame = m_frames.back();
        if (text == "<<")
            refuse(mark, "a merge key (<<)", "the settings themselves");
        if (!value.is_string())
            refuse(mark, fmt::format("the key {}", value.dump()), "a name");
        if (frame.value.contains(text))
            throw InputError(m_file, placeOf(mark), fmt::format("the key \"{}\" stands twice", text), "each key once");
        frame.key = text;
        frame.keyKnown = true;
    }

    std::string nextPointer() const
    {
        if (m_frames.empty())
            return {};
        const Frame& frame = m_frames.back();
        return frame.pointer +
               (frame.value.is_object() ? pointerPart(frame.key) : fmt::format("/{}", frame.value.size()));
    }

    void place(const YAML::Mark& mark, Json value)
    {
        m_document.places[nextPointer()] = placeOf(mark);
        attach(std::move(value));
    }

    void attach(Json value)
    {
        if (m_frames.empty()) {
            m_document.json = std::move(value);
            return;
        }
        Frame& frame = m_frames.back();
        if (frame.value.is_object()) {
            frame.value[frame.key] = std::move(value);
            frame.keyKnown = false;
        } else {
            frame.value.push_back(std::move(value));
        }
    }

    void open(const YAML::Mark& mark, const std::string& tag, Json empty)
    {
        if (!tag.empty() && tag != "?" && tag != "!")
            refuse(mark, fmt::format("the tag {}", tag), "a plain value");
        if (expectsKey())
            refuse(mark, "a list or a map as a key", "a name");
        if (m_frames.size() >= kMaximumDepth)
            throw InputError(m_file, placeOf(mark), fmt::format("nested more than {} levels deep", kMaximumDepth));
        const std::string pointer = nextPointer();
        m_document.places[pointer] = placeOf(mark);
        m_frames.push_back({std::move(empty), pointer, {}, false});
    }

    void close()
    {
        Json value = std::move(m_frames.back().value);
        m_frames.pop_back();
        attach(std::move(value));
    }

    std::string m_file;
    YamlDocument m_document;
    std::vector<Frame> m_frames;
};

bool isUtf8(const std::string& text)
{
    try {
        return !Json(text).dump().empty();
    } catch (const Json::exception&) {
        return false;
    }
}

/// YAML allows no control characters but tab and line ends (YAML 1.1 sec. 5.1), and yaml-cpp mistakes one of them for
/// the end of its input.
void refuseControlCharacters(const std::string& text, const std::string& file)
{
    int line = 1;
    int column = 1;
    for (const char c : text) {
        const auto byte = static_cast<unsigned char>(c);
        if ((byte < 0x20 && c != '\t' && c != '\n' && c != '\r') || byte == 0x7f)
            throw InputError(file, fmt::format("line {}, column {}", line, column),
                             fmt::format("holds the control character {:#04x}", byte),
                             "text without control characters");
        ++column;
        if (c == '\n') {
            ++line;
            column = 1;
        }
    }
}

} // namespace

YamlDocument parseYaml(const std::string& text, const std::string& file)
{
    if (text.size() > kMaximumText)
        throw InputError(file, "", "is larger than 1 MiB", "a configuration file");
    if (!isUtf8(text))
        throw InputError(file, "", "is not UTF-8 text", "a YAML file");
    refuseControlCharacters(text, file);
    try {
        std::istringstream stream(text);
        YAML::Parser parser(stream);
        Builder builder(file);
        if (!parser.HandleNextDocument(builder))
            throw InputError(file, "", "is empty", "a YAML map of settings");
        YamlDocument document = builder.take();
        Builder second(file);
        if (parser.HandleNextDocument(second))
            throw InputError(file, "", "holds more than one YAML document", "one document");
        return document;
    } catch (const YAML::Exception& error) {
        throw InputError(file, placeOf(error.mark), "not valid YAML: " + error.msg);
    }
}

InputError withYamlPlaces(const InputError& error, const std::string& file, const YamlDocument& document)
{
    std::vector<Finding> findings = error.findings();
    for (Finding& finding : findings) {
        const auto place = document.places.find(finding.place == "/" ? "" : finding.place);
        if (finding.file != file || place == document.places.end() || place->second.empty())
            continue;
        std::string name = finding.place.substr(std::min<std::size_t>(1, finding.place.size()));
        std::replace(name.begin(), name.end(), '/', '.');
        finding.place = name.empty() ? place->second : fmt::format("{} ({})", place->second, name);
    }
    return InputError(std::move(findings));
}

} // namespace shardwright
