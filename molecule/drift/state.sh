# What file_state.sh does not say: units as they are and as the next boot has them, packages, holds, accounts.
ours='^(comfyui|docker|nvidia|somebody)'
systemctl list-unit-files --no-legend --plain --full | awk -v ours="$ours" '$1 ~ ours {print "unit-file", $1, $2}' | sort
systemctl list-units --all --no-legend --plain --full --type=service,timer,path,socket \
  | awk -v ours="$ours" '$1 ~ ours && $1 != "comfyui-guard.service" {print "unit", $1, $2, $3}' | sort
dpkg-query --show --showformat '${Package} ${Version} ${db:Status-Want} ${db:Status-Status}\n' \
  | awk '$4 == "installed" {print "package", $0}' | sort
for base in passwd group; do { getent "$base" comfyui || test $? = 2; } | sed "s/^/$base /"; done
# Its keys may stand in another order.
python3 -c 'import json; print("daemon.json", json.dumps(json.load(open("/etc/docker/daemon.json")), sort_keys=True))'
