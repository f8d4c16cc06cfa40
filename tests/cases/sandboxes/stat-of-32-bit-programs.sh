#!/usr/bin/env bash
# A 32-bit program without large file support can stat files of the image.
#
# Reported: aristanetworks/bst#98, phusion/passenger#1016. Oracle: docker.
. "$(dirname "$0")/lib/lib.sh"
cat > "$work/st.c" <<'END'
static int call(int n,long a,long b,long c){int r;__asm__ volatile("int $0x80":"=a"(r):"a"(n),"b"(a),"c"(b),"d"(c):"memory");return r;}
static char buf[256];
void _start(void){int r=call(106,(long)"/etc/passwd",(long)buf,0);call(1,r==0?0:-r,0,0);}
END
gcc -m32 -nostdlib -static -fno-pic -no-pie -O1 -o "$work/st" "$work/st.c" 2>/dev/null || skip "no compiler for 32-bit programs here"
"$work/st" || skip "stat(2) of 32-bit programs does not work on this host's /etc/passwd (errno $?)"
sandbox a; put a "$work/st" /st; ex a /st; errno=$?
say "stat(2) of /etc/passwd by a 32-bit program: errno $errno (75 is EOVERFLOW); inode $(ex a stat -c %i /etc/passwd)"
[ $errno = 0 ] && pass "32-bit programs can stat files of the image"
fail "a 32-bit program gets errno $errno from stat of any file of the image (docker: 0)"
