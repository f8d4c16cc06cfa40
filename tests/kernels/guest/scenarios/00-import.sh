# A directory becomes a snapshot, and comes out again as it was.
inlay import --quiet "dir:$tree" --name base --kind image >/dev/null
mkdir -p project
seq 2000 >project/numbers
head -c 2000000 /dev/urandom >project/random
ln -sf numbers project/link
inlay import --quiet dir:project --name project --kind directory >/dev/null
inlay verify base >/dev/null
inlay export --quiet base dir:exported >/dev/null
same_as_source exported
rm -rf exported
