#include "planner/report/time_parts.hpp"

namespace shardwright {

const std::vector<TimePart>& timeParts()
{
    static const std::vector<TimePart> parts{
        {{'C', Ink::Green}, "compute", "compute", "forward, backward and the loss", &StepBreakdown::compute},
        {{'R', Ink::Yellow},
         "recompute",
         "recompute",
         "forward once more, for activation checkpointing",
         &StepBreakdown::recompute},
        {{'X', Ink::Red},
         "exposed communication",
         "exposed_communication",
         "nothing computes, a collective is waited for",
         &StepBreakdown::exposedCommunication},
        {{'B', Ink::Magenta},
         "pipeline bubble",
         "bubble",
         "pipeline stages wait for each other",
         &StepBreakdown::bubble},
        {{'H', Ink::LightMagenta},
         "offload",
         "offload",
         "waiting for copies over PCIe and for NVMe",
         &StepBreakdown::offload},
        {{'O', Ink::Cyan}, "optimizer", "optimizer", "the optimizer's step", &StepBreakdown::optimizer},
        {{'.', Ink::Grey},
         "other",
         "other",
         "copies within the GPU, quantisation, waiting for the host to launch, what collectives take from computing "
         "beside them",
         &StepBreakdown::other}};
    return parts;
}

const std::vector<Part>& timePartLooks()
{
    static const std::vector<Part> looks = [] {
        std::vector<Part> list;
        for (const TimePart& part : timeParts())
            list.push_back(part.part);
        return list;
    }();
    return looks;
}

std::vector<double> timeStack(const StepBreakdown& breakdown)
{
    std::vector<double> values;
    for (const TimePart& part : timeParts())
        values.push_back(breakdown.*part.seconds);
    return values;
}

} // namespace shardwright
