#include "core/strategy.hpp"

namespace shardwright {

std::string_view frameworkOf(const Strategy& strategy)
{
    struct Visitor {
        std::string_view operator()(const DdpOptions&) const { return "ddp"; }
        std::string_view operator()(const Fsdp1Options&) const { return "fsdp1"; }
        std::string_view operator()(const Fsdp2Options&) const { return "fsdp2"; }
        std::string_view operator()(const DeepSpeedOptions&) const { return "deepspeed"; }
        std::string_view operator()(const NativeOptions&) const { return "native"; }
        std::string_view operator()(const MegatronOptions&) const { return "megatron"; }
    };
    return std::visit(Visitor{}, strategy.options);
}

} // namespace shardwright
