#include "planner/cli/output.hpp"

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include "core/cli/streams.hpp"
#include "core/json_cursor.hpp"
#include "core/plain_text.hpp"

namespace shardwright {

template <> struct EnumNames<cli::Format> {
    static constexpr std::array<std::pair<cli::Format, std::string_view>, 3> table{
        {{cli::Format::Text, "text"}, {cli::Format::Json, "json"}, {cli::Format::Csv, "csv"}}};
};

} // namespace shardwright

namespace shardwright::cli {

namespace fs = std::filesystem;

namespace {

[[noreturn]] void cannotWrite(const std::string& path, int error)
{
    throw EnvironmentError(fmt::format("cannot write {}: {}", path, std::strerror(error)));
}

/// A file beside its target, removed unless it was renamed.
class TemporaryFile {
public:
    explicit TemporaryFile(const std::string& target) : m_path(target + ".XXXXXX"), m_file(mkstemp(m_path.data())) {}
    TemporaryFile(const TemporaryFile&) = delete;
    TemporaryFile& operator=(const TemporaryFile&) = delete;
    ~TemporaryFile()
    {
        if (m_file >= 0) {
            ::close(m_file);
            ::unlink(m_path.c_str());
        }
    }

    /// False with errno set when a step fails.
    bool write(std::string_view text) const
    {
        const mode_t mask = ::umask(0); // mkstemp makes the file private; give it what creating it would have
        ::umask(mask);
        constexpr mode_t kReadWriteForAll = 0666;
        return m_file >= 0 && ::fchmod(m_file, kReadWriteForAll & ~mask) == 0 && writeAll(m_file, text) &&
               ::fsync(m_file) == 0;
    }

    /// Moves it to `target`: over what is there when `replace`, else only where nothing is.
    bool moveTo(const std::string& target, bool replace)
    {
        const int done = replace ? ::rename(m_path.c_str(), target.c_str()) : ::link(m_path.c_str(), target.c_str());
        if (done != 0)
            return false;
        if (!replace)
            ::unlink(m_path.c_str());
        ::close(m_file);
        m_file = -1;
        return true;
    }

private:
    std::string m_path;
    int m_file;
};

[[noreturn]] void fileExists(const std::vector<std::string>& paths)
{
    std::vector<Finding> findings;
    for (const std::string& path : paths)
        findings.push_back({path, "", "exists already", "another place, or --force to replace it"});
    throw InputError(std::move(findings));
}

template <typename E>
void addEnum(CLI::App& app, const char* option, E& target, Findings& findings, const std::vector<E>& allowed,
             const std::string& help)
{
    std::vector<std::string> names;
    for (const E value : allowed)
        names.emplace_back(nameOf(value));
    app.add_option_function<std::string>(
           option,
           [=, &target, &findings](const std::string& text) {
               const auto value = valueOf<E>(text);
               if (value && std::find(allowed.begin(), allowed.end(), *value) != allowed.end())
                   target = *value;
               else
                   findings.add(option, fmt::format("is \"{}\"", withoutControls(text)),
                                fmt::format("one of {}", fmt::join(names, ", ")));
           },
           help)
        ->type_name(fmt::format("{}", fmt::join(names, "|")))
        ->group("Output");
}

} // namespace

void writeWhole(const std::string& path, std::string_view text, bool replace)
{
    std::error_code ignored;
    if (fs::is_directory(path, ignored))
        throw InputError(path, "", "is a folder", "the path of a file");
    const bool device = fs::exists(path, ignored) && !fs::is_regular_file(path, ignored);
    if (device) { // /dev/stdout, a named pipe: nothing to replace, and nothing to rename over
        const int file = ::open(path.c_str(), O_WRONLY | O_CLOEXEC);
        const bool written = file >= 0 && writeAll(file, text);
        const int error = errno;
        if (file >= 0)
            ::close(file);
        if (!written)
            cannotWrite(path, error);
        return;
    }
    refuseExisting({path}, replace);
    TemporaryFile temporary(path);
    if (!temporary.write(text))
        cannotWrite(path, errno);
    if (temporary.moveTo(path, replace))
        return;
    if (errno == EEXIST)
        fileExists({path});
    // No hard links here (vfat, some network mounts): rename, having seen above that nothing is there.
    if (!temporary.moveTo(path, true))
        cannotWrite(path, errno);
}

void refuseExisting(const std::vector<std::string>& paths, bool replace)
{
    if (replace)
        return;
    std::vector<std::string> there;
    for (const std::string& path : paths)
        if (struct stat facts{}; ::lstat(path.c_str(), &facts) == 0)
            there.push_back(path);
    if (!there.empty())
        fileExists(there);
}

void OutputOptions::add(CLI::App& app, Findings& findings, Formats formats, Target target)
{
    std::vector<Format> allowed{Format::Text, Format::Json};
    if (formats == Formats::TextJsonCsv)
        allowed.push_back(Format::Csv);
    if (formats == Formats::Json)
        m_format = Format::Json;
    else
        addEnum(app, "--format", m_format, findings, allowed, "for people, or for programs");
    if (formats != Formats::Json)
        addEnum(app, "--color", m_colour, findings, {ColourChoice::Auto, ColourChoice::Always, ColourChoice::Never},
                "auto: on a terminal, unless NO_COLOR is set");
    if (target == Target::StandardOutput)
        return;
    const bool folder = target == Target::Folder;
    app.add_option_function<std::string>(
           "-o,--output",
           [this, folder, &findings](const std::string& path) {
               m_path = path;
               if (path.empty()) // as an unset variable of a script leaves it
                   findings.add("--output", "is \"\"", folder ? "the path of a folder" : "the path of a file");
           },
           folder ? "write the files into this folder" : "write the answer to this file")
        ->type_name(folder ? "DIR" : "FILE")
        ->group("Output");
    app.add_flag("--force", m_force, "replace files that exist")->group("Output");
}

OutputStyle OutputOptions::style() const
{
    OutputFacts facts = standardOutputFacts();
    facts.isTerminal = facts.isTerminal && m_path.empty();
    OutputStyle style = chooseStyle(facts, m_colour);
    style.unicode = style.unicode && (facts.isTerminal || m_colour == ColourChoice::Always);
    return style;
}

void OutputOptions::write(const std::string& text) const
{
    if (m_path.empty())
        printOut(text);
    else
        writeWhole(m_path, text, m_force);
}

} // namespace shardwright::cli
