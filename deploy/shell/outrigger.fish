# fish completion for outrigger; made by `outrigger completion fish`
# What follows -- is the app's own command.
function __outrigger_before_dashes; not contains -- -- (commandline -opc); end
complete -c outrigger -n __outrigger_before_dashes -f
complete -c outrigger -n __fish_use_subcommand -l help -d 'how it is used'
complete -c outrigger -n __fish_use_subcommand -l version -d 'which version it is'
complete -c outrigger -n __fish_use_subcommand -a run -d 'start an app and everything in front of it'
complete -c outrigger -n '__outrigger_before_dashes; and __fish_seen_subcommand_from run' -l policy -rF
complete -c outrigger -n __fish_use_subcommand -a check -d 'validate a policy; show it with every default'
complete -c outrigger -n '__outrigger_before_dashes; and __fish_seen_subcommand_from check' -l print
complete -c outrigger -n '__outrigger_before_dashes; and __fish_seen_subcommand_from check' -l running
complete -c outrigger -n '__outrigger_before_dashes; and __fish_seen_subcommand_from check' -l policy -rF
complete -c outrigger -n '__outrigger_before_dashes; and __fish_seen_subcommand_from check' -F
complete -c outrigger -n __fish_use_subcommand -a schema -d 'the policy language as a JSON Schema, for editors'
complete -c outrigger -n __fish_use_subcommand -a explain -d 'which route, user, tier and limits a request gets'
complete -c outrigger -n '__outrigger_before_dashes; and __fish_seen_subcommand_from explain' -s H
complete -c outrigger -n '__outrigger_before_dashes; and __fish_seen_subcommand_from explain' -l policy -rF
complete -c outrigger -n __fish_use_subcommand -a init -d 'look at an app, write a policy for it, say how to start it'
complete -c outrigger -n '__outrigger_before_dashes; and __fish_seen_subcommand_from init' -F
complete -c outrigger -n __fish_use_subcommand -a doctor -d 'try what the policy names: a table of ok, warning, error'
complete -c outrigger -n '__outrigger_before_dashes; and __fish_seen_subcommand_from doctor' -l policy -rF
complete -c outrigger -n '__outrigger_before_dashes; and __fish_seen_subcommand_from doctor' -l slack
complete -c outrigger -n __fish_use_subcommand -a attribution -d 'what is hooked in the running app, what was left alone, and why'
complete -c outrigger -n '__outrigger_before_dashes; and __fish_seen_subcommand_from attribution' -l policy -rF
complete -c outrigger -n __fish_use_subcommand -a suggest -d 'figures for limits, by what the running gateway saw'
complete -c outrigger -n '__outrigger_before_dashes; and __fish_seen_subcommand_from suggest' -l policy -rF
complete -c outrigger -n __fish_use_subcommand -a report -d 'spend, tokens and calls out of the ledger'
complete -c outrigger -n '__outrigger_before_dashes; and __fish_seen_subcommand_from report' -l since -xa '24h'
complete -c outrigger -n '__outrigger_before_dashes; and __fish_seen_subcommand_from report' -l by -xa 'user model route'
complete -c outrigger -n '__outrigger_before_dashes; and __fish_seen_subcommand_from report' -l csv
complete -c outrigger -n '__outrigger_before_dashes; and __fish_seen_subcommand_from report' -l policy -rF
complete -c outrigger -n __fish_use_subcommand -a ctl -d 'what an operator does to the running gateway'
complete -c outrigger -n '__outrigger_before_dashes; and __fish_seen_subcommand_from ctl' -l policy -rF
complete -c outrigger -n '__outrigger_before_dashes; and __fish_seen_subcommand_from ctl' -l route -xa ''
complete -c outrigger -n '__outrigger_before_dashes; and __fish_seen_subcommand_from ctl' -l status -xa ''
complete -c outrigger -n '__outrigger_before_dashes; and __fish_seen_subcommand_from ctl' -a 'block unblock forgive breaker reload restart-app purge instances tasks task'
complete -c outrigger -n __fish_use_subcommand -a completion -d 'a shell'\''s completion of these commands'
complete -c outrigger -n '__outrigger_before_dashes; and __fish_seen_subcommand_from completion' -a 'bash zsh fish'
complete -c outrigger -n __fish_use_subcommand -a man -d 'the manual page, as in `outrigger man | man -l -`'
