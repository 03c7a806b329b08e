#include <map>
#include <memory>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include "core/catalogue.hpp"
#include "core/cli/streams.hpp"
#include "core/scenario_file.hpp"
#include "planner/cli/commands.hpp"
#include "planner/cli/output.hpp"
#include "planner/configs/configs.hpp"

namespace shardwright::cli {

namespace {

constexpr const char* kHelp = R"(Examples:
  shardplan completion bash
  shardplan completion zsh
  shardplan completion fish

To switch it on:
  bash: put   source <(shardplan completion bash)   into ~/.bashrc
  zsh:  put   source <(shardplan completion zsh)    into ~/.zshrc, after compinit
  fish: shardplan completion fish > ~/.config/fish/completions/shardplan.fish)";

using Words = std::vector<std::string>;

struct Completed {
    Words commands;
    std::map<std::string, Words> options; // by command: the long names, "--nodes"
    std::map<std::string, Words> values;  // by option, where they are known
    std::map<std::string, Words> first;   // by command: what its first argument can be
};

Completed collect(const CLI::App& root)
{
    Completed all;
    for (const CLI::App* command : root.get_subcommands({})) {
        all.commands.push_back(command->get_name());
        Words& options = all.options[command->get_name()];
        for (const CLI::Option* option : command->get_options())
            for (const std::string& name : option->get_lnames())
                options.push_back("--" + name);
    }
    Words strategies = strategyNames();
    all.first["strategies"] = strategies;
    all.values["--strategies"] = strategies;
    strategies.emplace_back("recommended");
    all.values["--strategy"] = strategies;
    all.first["models"] = all.values["--model"] = modelIds();
    all.first["clusters"] = all.values["--cluster"] = clusterIds();
    all.first["completion"] = {"bash", "zsh", "fish"};
    all.values["--to"] = configFormatWords();
    all.values["--format"] = {"text", "json", "csv"};
    all.values["--color"] = {"auto", "always", "never"};
    return all;
}

std::string joined(const Words& words)
{
    return fmt::format("{}", fmt::join(words, " "));
}

/// `prelude` are lines at the head of the function.
std::string bashScript(const Completed& all, const std::string& prelude = {})
{
    std::string text = "_shardplan() {\n" + prelude;
    text +=
        R"(    local word=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD-1]} command=${COMP_WORDS[1]} words=
    COMPREPLY=()
    case $previous in
)";
    for (const auto& [option, values] : all.values)
        text += fmt::format("    {}) words=\"{}\" ;;\n", option, joined(values));
    text += "    esac\n    if [[ -z $words && $COMP_CWORD -eq 1 ]]; then\n";
    text += fmt::format("        words=\"{} --help --version\"\n", joined(all.commands));
    text += "    elif [[ -z $words && $word == -* ]]; then\n        case $command in\n";
    for (const auto& [command, options] : all.options)
        text += fmt::format("        {}) words=\"{}\" ;;\n", command, joined(options));
    text += "        esac\n    elif [[ -z $words && $COMP_CWORD -eq 2 ]]; then\n        case $command in\n";
    for (const auto& [command, values] : all.first)
        text += fmt::format("        {}) words=\"{}\" ;;\n", command, joined(values));
    text += R"(        esac
    fi
    [[ -z $words ]] || COMPREPLY=($(compgen -W "$words" -- "$word"))
}
complete -o default -F _shardplan shardplan
)";
    return text;
}

std::string fishScript(const Completed& all)
{
    std::string text;
    text += fmt::format("complete -c shardplan -n __fish_use_subcommand -a \"{}\"\n", joined(all.commands));
    for (const auto& [command, options] : all.options)
        for (const std::string& option : options) {
            const auto values = all.values.find(option);
            text += fmt::format(
                "complete -c shardplan -n \"__fish_seen_subcommand_from {}\" -l {}{}\n", command, option.substr(2),
                values == all.values.end() ? std::string() : fmt::format(" -x -a \"{}\"", joined(values->second)));
        }
    for (const auto& [command, values] : all.first)
        text += fmt::format("complete -c shardplan -n \"__fish_seen_subcommand_from {}\" -a \"{}\"\n", command,
                            joined(values));
    return text;
}

/// zsh runs bash's script through its own compatibility layer (zshcompsys, bashcompinit).
std::string zshScript(const Completed& all)
{
    return "autoload -U +X bashcompinit && bashcompinit\n" +
           bashScript(all, "    setopt localoptions ksharrays shwordsplit\n");
}

} // namespace

Command addCompletion(CLI::App& root, Findings&)
{
    auto shell = std::make_shared<std::string>();
    CLI::App* app = root.add_subcommand("completion", "A script that completes commands, options and names in a shell");
    app->footer(kHelp);
    app->add_option("shell", *shell, "bash, zsh or fish")->type_name("SHELL")->required();
    return {app, [shell, &root] {
                const Completed all = collect(root);
                if (*shell == "bash")
                    printOut(bashScript(all));
                else if (*shell == "zsh")
                    printOut(zshScript(all));
                else if (*shell == "fish")
                    printOut(fishScript(all));
                else
                    throw InputError("command line", *shell, "is not a shell that is known here", "bash, zsh or fish");
                return ExitCode::Done;
            }};
}

} // namespace shardwright::cli
